# Every target sets up what it needs: make learn, make test, make lab. `make` alone lists them.
.PHONY: help learn test lab doctor check sync pretrain clean
.DEFAULT_GOAL := help

PY = .venv/bin/python
COURSE = $(PY) -m transfer_course
SETUP = PYTHON="$(PYTHON)" sh tools/setup.sh

help:
	@echo "make learn             run every lesson and write pages to _learn/"
	@echo "make learn LESSON=01   run one"
	@echo "make lab               open JupyterLab on the lessons"
	@echo "make test              run everything that must pass"
	@echo "make doctor            find out why the course does not run here"
	@echo "make check, make sync  are notebooks, modules and README in step? bring them in step"
	@echo "make pretrain DATA=…   pretrain the pocket ResNet on tiny-imagenet-200.zip"
	@echo "make clean             remove .venv, pages and build files"

learn:
	@$(SETUP) learn
	@$(COURSE) learn $(if $(LESSON),--lesson "$(LESSON)") $(ARGS)

test:
	@$(SETUP) dev
	@$(COURSE) test $(ARGS)

lab:
	@$(SETUP) learn
	@$(COURSE) lab $(ARGS)

doctor:
	@if [ -x $(PY) ]; then $(PY) transfer_course/backstage/doctor.py; else $(or $(PYTHON),python3) transfer_course/backstage/doctor.py; fi

check sync:
	@$(SETUP) dev
	@$(COURSE) $@

pretrain:
	@$(SETUP) learn
	@$(COURSE) pretrain $(DATA) $(ARGS)

clean:
	rm -rf .venv _learn build dist *.egg-info .pytest_cache .ruff_cache
