"""What the top bar says about the engine: the model and the machine, as two chips."""

import torch

import kernels
from playground.engine.engine import Engine
from playground.ui.wording import model_name, parameter_count, speculation_text


def chips(engine: Engine) -> list[dict[str, str]]:
    config = engine.config
    name = model_name(config.model or "")
    facts = [name, parameter_count(engine.model_config.num_parameters), config.dtype]
    if config.speculation is not None:
        facts.append(speculation_text(config.speculation))
    device = "CPU" if config.device == "cpu" else torch.cuda.get_device_name(config.device)
    threads = f", {torch.get_num_threads()} threads" if config.device == "cpu" else ""
    choices = kernels.explain(config.device)
    backends = " and ".join(sorted({choice.backend for choice in choices}))
    return [
        {
            "text": " · ".join(facts),
            "short": name.rpartition("/")[2],
            "tip": "The model that answers, its parameters, the type of its weights, and how drafts are made if they "
            f"are. Loaded from {config.model}.",
        },
        {
            "text": f"{device}{threads} · kernels: {backends}",
            "short": "CPU" if config.device == "cpu" else "GPU",
            "tip": f"Where the model runs, and the kernels it runs on: {choices[0].reason}.",
        },
    ]
