"""Sphinx configuration. Building needs no connection: see extensions/ and inventories/."""

import sys
from pathlib import Path

import plotly.io
from plotly.io._base_renderers import MimetypeRenderer
from plotly.offline import get_plotlyjs

import optuna_aznas

HERE = Path(__file__).parent
GENERATED = HERE / "_build" / "generated"  # what this file writes for the build
sys.path.insert(0, str(HERE / "extensions"))

project = "optuna_aznas"
author = "The optuna_aznas developers"
project_copyright = "2026, the optuna_aznas developers"
version = release = optuna_aznas.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "inventories",
    "mathml",
]
html_theme = "furo"
html_title = f"optuna_aznas {release}"
html_static_path = [str(GENERATED / "static"), "static"]
html_css_files = ["wide_code.css"]
html_math_renderer = "mathml"
exclude_patterns = ["_build", "detected.rst", "tables", "tutorials", "**/sg_execution_times.rst"]
nitpicky = False

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Figures of the tutorials load plotly from the built pages themselves.
(GENERATED / "static").mkdir(parents=True, exist_ok=True)
(GENERATED / "static" / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")


class OfflineRenderer(MimetypeRenderer):
    """Shows a plotly figure with the copy of plotly.js among the static files."""

    def to_mimebundle(self, fig_dict):
        """Return the figure as HTML."""
        html = plotly.io.to_html(
            fig_dict,
            include_plotlyjs="../_static/plotly.min.js",
            include_mathjax=False,
            full_html=False,
            default_height=450,
            validate=False,
        )
        return {"text/html": html}


plotly.io.renderers["offline"] = OfflineRenderer()
plotly.io.renderers.default = "offline"

sphinx_gallery_conf = {
    "examples_dirs": ["tutorials"],
    "gallery_dirs": ["auto_tutorials"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": ("_repr_html_", "__str__"),
    "image_scrapers": (),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "reset_modules": (),
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 1e9,
}
