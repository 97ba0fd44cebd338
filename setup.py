"Build the package from `settings.ini`, the single home of its metadata."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).resolve().parent
ini = ConfigParser()
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
name = cfg['lib_name']
readme = root/'README.md'

# Results lie in nbs/results, beside the lessons that quote them; a wheel carries them as transfer_course/results.
packages, package_dir = find_packages(include=[name, name+'.*']), {}
if (root/'nbs'/'results').is_dir():
    packages.append(f'{name}.results')
    package_dir[f'{name}.results'] = 'nbs/results'

setup(
    name=name,
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.is_file() else cfg['description'],
    long_description_content_type='text/markdown',
    author=cfg['author'],
    license_expression=cfg['license'],
    license_files=['LICENSE'],
    keywords=cfg['keywords'].split(),
    classifiers=['Programming Language :: Python :: 3', 'Intended Audience :: Education',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    url=cfg['git_url'],
    project_urls={'Source': cfg['git_url'], 'Documentation': cfg['doc_url']},
    python_requires=f">={cfg['min_python']}",
    packages=packages,
    package_dir=package_dir,
    package_data={name: ['assets/*'], f'{name}.results': ['*.json', '*.md']},
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split()},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f'{name}={name}._modidx:d'],
    },
)
