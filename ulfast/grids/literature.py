"""Published test accuracies for comparison with our tables."""

from __future__ import annotations

# CIFAR-10, ResNet-18, clean test accuracy in percent after training on the poison: Liu, Zhao and Larson, Image Shortcut
# Squeezing, ICML 2023 (arXiv 2301.13838).
ISS: dict[str, dict[str, float]] = {
    "clean": {"none": 94.68, "iss-gray": 92.41, "iss-jpeg": 85.38},
    "em": {"none": 21.05, "iss-gray": 93.01, "iss-jpeg": 81.50},
    "rem": {"none": 25.44, "iss-gray": 92.84, "iss-jpeg": 81.50},
    "ntga": {"none": 42.46, "iss-gray": 74.32, "iss-jpeg": 69.49},
    "hypo": {"none": 71.54, "iss-gray": 61.86, "iss-jpeg": 85.45},
    "tap": {"none": 8.17, "iss-gray": 9.11, "iss-jpeg": 83.87},
    "sep": {"none": 3.85, "iss-gray": 3.57, "iss-jpeg": 84.37},
    "lsp": {"none": 19.07, "iss-gray": 82.47, "iss-jpeg": 83.01},
    "ar": {"none": 13.28, "iss-gray": 34.04, "iss-jpeg": 85.15},
    "ops": {"none": 36.55, "iss-gray": 42.44, "iss-jpeg": 82.53},
}

# name -> (accuracies in percent by poison and attack, their source)
PUBLISHED: dict[str, tuple[dict[str, dict[str, float]], str]] = {
    "iss": (ISS, "Liu, Zhao and Larson, ICML 2023: CIFAR-10, ResNet-18"),
}
