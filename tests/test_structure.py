"The course as a whole: every check passes here, and every check finds the fault it looks for."
import base64

import pytest
from conftest import ROOT, cell

from transfer_course.backstage import checks
from transfer_course.backstage.assets import settings
from transfer_course.backstage.sync import fill, read_notebook, sync, write_notebook


@pytest.mark.parametrize('what', checks.CHECKS)
def test_this_course(what): assert checks.CHECKS[what](ROOT) == []


@pytest.mark.parametrize('what', checks.CHECKS)
def test_tiny_course_is_whole(what, whole_tree): assert checks.CHECKS[what](whole_tree) == []


def change(path, edit):
    "Load a notebook, let `edit` change it, and write it back."
    nb = read_notebook(path)
    edit(nb)
    write_notebook(nb, path)


def add_output(data=None, metadata=None, **out):
    "An edit that puts an output into the last code cell."
    def edit(nb):
        new = out or dict(output_type='display_data', data=data, metadata=metadata or {})
        [c for c in nb['cells'] if c['cell_type'] == 'code'][-1]['outputs'] = [new]
    return edit


def add_cell(kind, text): return lambda nb: nb['cells'].append(cell(kind, text))


def first(tree): return tree/'nbs'/'01_first.ipynb'


def plant_edited_module(tree):
    module = tree/'transfer_course'/'first.py'
    module.write_text(module.read_text().replace('return 1', 'return 2'))


def plant_edited_notebook(tree): change(first(tree), add_cell('code', '#| export\ndef three(): return 3'))
def plant_lost_notebook(tree): first(tree).unlink()
def plant_lost_module(tree): (tree/'transfer_course'/'first.py').unlink()
def plant_two_homes(tree): change(tree/'nbs'/'02_second.ipynb', lambda nb: nb['cells'][3].update(source=['#| default_exp first']))
def plant_count(tree): change(first(tree), lambda nb: nb['cells'][-1].update(execution_count=7))
def plant_metadata(tree): change(first(tree), lambda nb: nb['metadata'].update(vscode=dict(x=1)))
def plant_readme(tree): (tree/'README.md').write_text('# Mine\n')
def plant_index(tree): change(tree/'nbs'/'index.ipynb', add_cell('markdown', 'More.'))
def plant_version(tree): (tree/'transfer_course'/'__init__.py').write_text('__version__ = "9"\n')
def plant_fork(tree): (tree/'settings.ini').write_text((tree/'settings.ini').read_text().replace('user = you', 'user = somebody'))
def plant_badges(tree): change(first(tree), lambda nb: nb['cells'][1].update(source=['<!-- badges -->\n', 'mine']))
def plant_title(tree): change(first(tree), lambda nb: nb['cells'][0].update(source=['First']))
def plant_no_install(tree): change(first(tree), lambda nb: nb['cells'].pop(2))
def plant_error(tree): change(first(tree), add_output(output_type='error', ename='NameError', evalue='x', traceback=[]))
def plant_link(tree): change(first(tree), add_cell('markdown', 'See [that](09_gone.ipynb).'))
def plant_path(tree): change(first(tree), add_output(output_type='stream', name='stdout', text=['/ho' + 'me/ada/pets\n']))
def plant_own_path(tree): (tree/'tests').mkdir(); (tree/'tests'/'test_x.py').write_text(f'data = "{tree}/data"\n')
def plant_key(tree): change(first(tree), add_cell('code', 'key = "hf' + '_' + 'abcdefghij' * 4 + '"'))
def plant_silent_picture(tree): change(first(tree), add_output({'image/png': 'eA=='}))
def plant_silent_html(tree): change(first(tree), add_output({'text/html': ['<p><img src="data:,x"></p>']}))
def plant_silent_markdown(tree): change(first(tree), add_cell('markdown', '![](data:,x)'))


def plant_heavy_picture(tree):
    png = base64.b64encode(bytes(150_000)).decode()
    change(first(tree), add_output({'image/png': png}, {'image/png': {'alt': 'Black.'}}))


def plant_heavy_notebook(tree): change(first(tree), add_output(output_type='stream', name='stdout', text=['x' * 1_100_000]))


def plant_stateless_widgets(tree): change(first(tree), lambda nb: nb['metadata'].update(widgets={checks.STATE: dict(version_major=2)}))


def plant_lost_widget(tree):
    change(first(tree), lambda nb: nb['metadata'].update(widgets={checks.STATE: dict(state={}, version_major=2)}))
    change(first(tree), add_output({checks.VIEW: dict(model_id='abc')}))


def plant_later_import(tree):
    change(first(tree), add_cell('code', '#| export\ndef late():\n    from transfer_course.second import two\n    return two()'))
    sync(tree)


def plant_detour(tree):
    change(first(tree), add_cell('code', '#| export\nfrom transfer_course.backstage.behind import help'))
    change(tree/'nbs'/'backstage'/'behind.ipynb', add_cell('code', '#| export\ndef f():\n    from transfer_course import second'))
    sync(tree)


FAULTS = [
    (plant_edited_module, checks.check_in_step, 'transfer_course/first.py'), (plant_edited_notebook, checks.check_in_step, 'first.py'),
    (plant_lost_notebook, checks.check_modules, 'first.py has no notebook'), (plant_lost_module, checks.check_modules, 'no module first'),
    (plant_two_homes, checks.check_one_home, '01_first and 02_second'), (plant_count, checks.check_clean, '01_first'),
    (plant_metadata, checks.check_clean, '01_first'), (plant_readme, checks.check_made, 'README.md'), (plant_index, checks.check_made, 'README.md'),
    (plant_version, checks.check_made, '__init__.py'), (plant_fork, checks.check_made, '01_first'), (plant_badges, checks.check_made, '01_first'),
    (plant_title, checks.check_form, 'first cell'), (plant_no_install, checks.check_form, 'third cell'),
    (plant_later_import, checks.check_import_order, 'first imports second'), (plant_detour, checks.check_import_order, 'first imports second'),
    (plant_error, checks.check_outputs, 'NameError'), (plant_heavy_picture, checks.check_outputs, '150 kB'),
    (plant_heavy_notebook, checks.check_outputs, '1.1 MB'), (plant_stateless_widgets, checks.check_widgets, 'without state'),
    (plant_lost_widget, checks.check_widgets, 'cell'), (plant_silent_picture, checks.check_alt, 'figure without'),
    (plant_silent_html, checks.check_alt, 'figure without'), (plant_silent_markdown, checks.check_alt, 'picture without'),
    (plant_path, checks.check_words, 'a path of one machine'), (plant_own_path, checks.check_words, 'a path of this machine'),
    (plant_key, checks.check_words, 'a key'), (plant_link, checks.check_links, '09_gone.ipynb'),
]


@pytest.mark.parametrize('plant, check, words', FAULTS, ids=[f[0].__name__[6:] for f in FAULTS])
def test_fault_is_found(plant, check, words, tree):
    plant(tree)
    found = check(tree)
    assert found and words in '\n'.join(found)
    assert all(p.endswith('.') and len(p) < 250 for p in found)


def test_fork_changes_one_place(tree):
    plant_fork(tree)
    changed = sync(tree)
    assert {'nbs/01_first.ipynb', 'nbs/02_second.ipynb', 'nbs/index.ipynb', 'README.md'} <= set(changed)
    assert not checks.check_made(tree) and not checks.check_clean(tree)
    text = (tree/'README.md').read_text() + first(tree).read_text()
    assert 'somebody/course' in text and 'you/course' not in text
    assert sync(tree) == []


def test_readme_links_from_above(tree): assert '(nbs/01_first.ipynb)' in (tree/'README.md').read_text()


def test_badges_have_texts_and_addresses(root):
    cfg = settings(root)
    for path in sorted((root/'nbs').glob('[0-9]*.ipynb')):
        badges = ''.join(fill(read_notebook(path), path.stem, root)['cells'][1]['source'])
        assert f'github/{cfg["user"]}/{cfg["repo"]}/blob/{cfg["branch"]}/nbs/{path.name}' in badges
        assert '[![Open in Colab]' in badges and '[![Launch on Binder]' in badges


def test_metadata_lives_in_settings(root):
    assert '[project]' not in (root/'pyproject.toml').read_text()
    import transfer_course
    assert transfer_course.__version__ == settings(root)['version']
    assert not [r for r in settings(root)['requirements'].split() if '<' in r or '==' in r], 'lower bounds only'
    assert 'Apache License' in (root/'LICENSE').read_text()
