# Every target sets up what it needs: make learn, make test, make lab. `make` alone lists them.
.PHONY: help learn test lab doctor check sync pretrain bench clean
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
	@echo "make bench DATA=…      race the course against its peers, on a folder of photographs (hours)"
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

# The peers live beside the course in an environment of their own, so that they can't disturb the one the lessons run in.
bench:
	@COURSE_VENV=.venv-bench $(SETUP) learn
	@cmp -s benchmarks/requirements.txt .venv-bench/.peers || { \
	  echo "Installing the peers into .venv-bench (log: .venv-bench/peers.log)"; \
	  .venv-bench/bin/python -m pip install --quiet -r benchmarks/requirements.txt >.venv-bench/peers.log 2>&1 \
	    || { tail -n 15 .venv-bench/peers.log; exit 1; }; cp benchmarks/requirements.txt .venv-bench/.peers; }
	@.venv-bench/bin/python benchmarks/race.py $(if $(DATA),--data "$(DATA)") $(if $(REVIEWS),--reviews "$(REVIEWS)") $(ARGS)

clean:
	rm -rf .venv .venv-bench benchmarks/_work _learn build dist *.egg-info .pytest_cache .ruff_cache
