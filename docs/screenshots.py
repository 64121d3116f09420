"""Makes the pictures of docs/dashboard.rst: ``python docs/screenshots.py``.

A search of NAS-Bench-201 in which every surviving architecture is "trained" by looking up its published accuracy,
opened in optuna-dashboard in a headless browser. Needs the extras ``dashboard``, ``bench`` and ``browser``, and
Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import optuna
import torch
from playwright.sync_api import Page, sync_playwright

import optuna_aznas as az
from optuna_aznas.spaces.nas_bench_201_results import load_results

IMAGES = Path(__file__).parent / "images"


def search(storage: str, n_trials: int) -> None:
    """Make the study."""
    accuracies = load_results("cifar10")
    evaluator = az.ProxyEvaluator(input_shape=(3, 32, 32), seed=0)

    def objective(trial: optuna.Trial) -> float:
        network = az.spaces.nas_bench_201.build(trial, device="meta")
        az.record(trial, evaluator(network))
        if trial.should_prune():
            raise optuna.TrialPruned
        return accuracies[network.arch].accuracy

    study = optuna.create_study(
        study_name="nas_bench_201",
        storage=storage,
        direction="maximize",
        sampler=az.AZNASSampler(seed=0),
        pruner=az.AZNASPruner(keep_fraction=0.5),
    )
    study.set_metric_names(["CIFAR-10 accuracy"])
    study.optimize(objective, n_trials=n_trials, show_progress_bar=True)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(address: str) -> None:
    """Wait until a server answers."""
    for _ in range(150):
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"nothing answers on {address}")


def take(page: Page, address: str, name: str, until: str, top: int = 0) -> None:
    """Save what the page shows below ``top`` (in pixels) once ``until`` is there."""
    page.goto(address)
    page.locator(until).first.wait_for()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1500)  # the last figures are drawn
    size = page.viewport_size
    assert size is not None
    clip = {"x": 0, "y": top, "width": size["width"], "height": size["height"] - top}
    page.screenshot(path=IMAGES / name, clip=clip)
    print(f"{IMAGES / name}: {(IMAGES / name).stat().st_size / 1e3:.0f} KB")


def profile(page: Page, folder: Path) -> None:
    """Save the block profiles of two networks of docs/own_model.rst beside each other."""
    from torch import nn

    def chain(*channels: int) -> nn.Module:
        pairs = zip((3, *channels), channels, strict=False)
        convs = [nn.Sequential(nn.Conv2d(a, b, 3, 1 + (b == 64), 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairs]
        return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))

    evaluator = az.ProxyEvaluator(input_shape=(3, 32, 32))
    diagnoses = [az.diagnose(chain(32, 32, width, 64), evaluator) for width in (4, 48)]
    figure = az.visualization.plot_block_profile(*diagnoses, labels=["bottleneck", "wider"])
    figure.write_html(folder / "profile.html")
    page.set_viewport_size({"width": 900, "height": 680})
    take(page, (folder / "profile.html").as_uri(), "profile.png", ".scatterlayer .point")


def main() -> None:
    """Make the study, open it and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=250)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        storage = f"sqlite:///{folder}/nas.db"
        search(storage, options.trials)
        study = optuna.load_study(study_name="nas_bench_201", storage=storage)
        best = az.best_trials(study, 1)[0].number
        port = free_port()
        command = [sys.executable, "-m", "optuna_aznas", "dashboard", "--storage", storage, "--port", str(port)]
        server = subprocess.Popen(command)
        try:
            wait_for(f"http://127.0.0.1:{port}")
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
                args=["--no-sandbox", "--enable-unsafe-swiftshader", "--disable-background-networking"],
            )
            page = browser.new_page(viewport={"width": 1400, "height": 2700}, device_scale_factor=0.75)
            address = f"http://127.0.0.1:{port}/dashboard/studies/{study._study_id}"
            drawn = "[id='user-defined-plot:aznas-importance'] .barlayer .point"
            take(page, address, "figures.png", drawn, top=1215)
            page.set_viewport_size({"width": 1400, "height": 950})
            take(page, f"{address}/note", "note.png", "table tbody tr")
            take(page, f"{address}/trials?numbers={best}", "trial.png", "table tbody tr")
            profile(page, Path(folder))
            browser.close()
        finally:
            server.terminate()
            server.wait(10)


if __name__ == "__main__":
    main()
