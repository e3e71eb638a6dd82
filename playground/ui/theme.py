"""Gradio's theme for the page: system fonts and our two backgrounds. Everything else is in `static/app.css`."""

import gradio as gr

FONT = ("ui-sans-serif", "system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")


def theme() -> gr.themes.Base:
    return gr.themes.Base(font=FONT, font_mono=MONO).set(
        body_background_fill="#fbfbfa",
        body_background_fill_dark="#141618",
        body_text_color="#1d1f21",
        body_text_color_dark="#e6e8ea",
    )
