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

# The columns of APBench's leaderboard (June 2023), CIFAR-10, ResNet-18, under our names; its UEraser takes
# the worst of five.
APBENCH_ATTACKS = (
    *("none", "cutout", "cutmix", "mixup", "gaussian", "iss-bdr", "iss-gray", "iss-jpeg", "ueraser", "avatar"),
    "adversarial",
)
_APBENCH = {
    "dc": (15.19, 19.94, 17.91, 25.07, 16.10, 67.73, 85.55, 83.57, 92.17, 82.10, 76.85),
    "em": (20.78, 18.79, 22.28, 31.14, 14.71, 37.94, 92.03, 80.72, 93.61, 75.62, 82.51),
    "rem": (17.47, 21.96, 26.22, 43.07, 21.80, 58.60, 92.27, 85.44, 92.43, 82.42, 77.46),
    "hypo": (70.38, 69.04, 67.12, 74.25, 62.17, 74.82, 63.35, 85.21, 88.44, 85.94, 81.49),
    "ntga": (22.76, 13.78, 12.91, 20.59, 19.95, 59.32, 70.41, 68.72, 86.78, 86.22, 69.70),
    "tap": (6.27, 9.88, 14.21, 15.46, 7.88, 70.75, 11.01, 84.08, 79.05, 87.75, 79.92),
    "lsp": (13.06, 14.96, 17.69, 18.77, 18.61, 53.86, 64.70, 80.14, 92.83, 76.90, 81.38),
    "ar": (11.74, 10.95, 12.60, 14.15, 13.83, 36.14, 35.17, 84.75, 90.12, 88.60, 81.15),
    "ops": (14.69, 52.98, 64.72, 49.27, 13.38, 37.32, 19.88, 78.48, 77.99, 66.16, 14.95),
}
APBENCH = {poison: dict(zip(APBENCH_ATTACKS, row, strict=True)) for poison, row in _APBENCH.items()}
# Sharpening and low frequencies against cuda: Kim and Sandoval-Segura, arXiv 2411.01742, table 1.
APBENCH["cuda"] = {"none": 23.25, "rsk+lowpass": 78.53, "adversarial": 44.40}

# name -> (accuracies in percent by poison and attack, their source)
PUBLISHED: dict[str, tuple[dict[str, dict[str, float]], str]] = {
    "iss": (ISS, "Liu, Zhao and Larson, ICML 2023: CIFAR-10, ResNet-18"),
    "apbench": (APBENCH, "APBench's leaderboard (cuda: arXiv 2411.01742): CIFAR-10, ResNet-18"),
}
