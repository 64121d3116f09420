"""Sphinx configuration."""

import optuna_aznas

project = "optuna_aznas"
author = "The optuna_aznas developers"
project_copyright = "2026, the optuna_aznas developers"
version = release = optuna_aznas.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
html_theme = "furo"
html_title = f"optuna_aznas {release}"
exclude_patterns = ["_build", "detected.rst", "tables"]
nitpicky = False

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
