#!/usr/bin/env python3
"""Reads a run's model cards as the Hugging Face hub does.

    pip install huggingface_hub
    python check_cards.py RUN
"""
import os, sys

from huggingface_hub import ModelCard, metadata_load

for network in ("generator", "discriminator"):
    path = os.path.join(sys.argv[1], network, "README.md")
    card, data = ModelCard.load(path), metadata_load(path)
    assert card.data.library_name == "transformers" and card.data.license == data["license"]
    results = card.data.eval_results or []
    assert all(isinstance(result.metric_value, float) for result in results)
    assert ("model-index" in data) == bool(results)
    print(network, card.data.pipeline_tag, "licence", data["license"], "language", data.get("language"),
          {result.metric_type: result.metric_value for result in results})
