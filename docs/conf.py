"""Sphinx configuration. Build with `sphinx-build -W -b html docs docs/_build/html`; needs no network."""

import inspect
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import benchmark_tables
import coverage_check
import fault_table
import optimizer_table
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature

from keras_trainkit import __version__

project = "keras_trainkit"
author = "the keras_trainkit authors"
release = version = __version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"keras_trainkit {release}"
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Docstrings write names in single backticks, as Keras's do.
default_role = "literal"
autosummary_generate = True
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Call arguments", "params_style")]


def real_signature(app, what, name, thing, options, signature, return_annotation):
    """The constructor's arguments for classes such as Keras's layers, whose `__new__` hides them."""
    if what == "class" and signature == "(*args, **kwargs)" and thing.__init__.__module__.startswith("keras_trainkit"):
        parameters = list(inspect.signature(thing.__init__).parameters.values())[1:]
        return stringify_signature(inspect.Signature(parameters)), return_annotation
    return None


def made_by_scikit_learn(app, what, name, thing, skip, options):
    """Leaves out the methods for metadata routing, whose text links to scikit-learn's own pages."""
    return True if name.startswith("set_") and name.endswith("_request") else None


class OptimizerTable(SphinxDirective):
    """A table of optimizers with their facts; its argument is the heading of the last column."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self):
        heading = self.arguments[0] if self.arguments else "take it when"
        try:
            lines = optimizer_table.markdown(list(self.content), heading)
        except ValueError as error:
            raise self.error(str(error)) from error
        return self.parse_text_to_nodes(StringList(lines, self.get_source_info()[0]))


class BenchmarkTable(SphinxDirective):
    """Measured figures, from the files in benchmarks/results/; its argument is the name of the table."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        try:
            lines = benchmark_tables.markdown(self.arguments[0])
        except ValueError as error:
            raise self.error(str(error)) from error
        return self.parse_text_to_nodes(StringList(lines, self.get_source_info()[0]))


class FaultTable(SphinxDirective):
    """What plain Keras does and what the kit does, from the marks of the tests; its argument is the table's name."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        try:
            lines = fault_table.markdown(self.arguments[0])
        except ValueError as error:
            raise self.error(str(error)) from error
        return self.parse_text_to_nodes(StringList(lines, self.get_source_info()[0]))


def setup(app):
    """Warns, and so fails the build under -W, for each public name that no reference page lists."""
    app.add_directive("optimizer-table", OptimizerTable)
    app.add_directive("benchmark-table", BenchmarkTable)
    app.add_directive("fault-table", FaultTable)
    app.connect("builder-inited", coverage_check.warn_about_missing)
    app.connect("autodoc-process-signature", real_signature)
    app.connect("autodoc-skip-member", made_by_scikit_learn)
