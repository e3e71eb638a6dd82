"""The Models page: what is loaded, what could be, whether it fits, and a calculator for what is not here."""

from pathlib import Path

import gradio as gr

from playground.sessions import SessionStore
from playground.ui import calculator, config_form
from playground.ui.components import surface
from playground.ui.model_list import FOLDERS_FILE, ModelFolders
from playground.ui.models_handlers import ModelsHandlers
from playground.ui.pages.page import MANY, Page, PageContext


def build(context: PageContext) -> None:
    do = ModelsHandlers(context.host, ModelFolders(_folders_file(context.store)))
    form = {"groups": config_form.groups(), "values": config_form.default_values()}
    with gr.Column(elem_id="models"):
        with gr.Column(elem_id="models-here"):
            # Not "load" or "unload": Gradio fires these by itself.
            now = surface("mountModelNow", "model-now", events=("unload_model",), live=True)
            events = ("refresh", "add_folder", "remove_folder")
            known = surface("mountModelList", "model-list", events=events, live=True)
        load = surface(
            "mountModelLoad", "model-load", events=("check", "start_load", "stop_load"), config=form, live=True
        )
        calculation = surface(
            "mountCalculator", "calculator", events=("calculate",), config=calculator.form(), live=True
        )
    latest = {**MANY, "trigger_mode": "always_last"}
    now.unload_model(do.unload, None, [now], **MANY)
    known.refresh(do.refresh, None, [known], **latest)
    known.add_folder(do.add, None, [known], **MANY)
    known.remove_folder(do.remove, None, [known], **MANY)
    load.check(do.check, None, [load], **latest)
    load.start_load(do.load, None, [load], **MANY)
    load.stop_load(do.cancel, None, None, queue=False, **MANY)
    calculation.calculate(do.calculate, None, [calculation], **latest)


def _folders_file(store: SessionStore) -> Path | None:
    return None if store.path == ":memory:" else Path(store.path).parent / FOLDERS_FILE


PAGE = Page(
    "models",
    "Models",
    build,
    scripts=("models/parts.js", "models/now.js", "models/list.js", "models/load.js", "models/calculator.js"),
    styles=("models/models.css",),
)
