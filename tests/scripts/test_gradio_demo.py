"""The page on which anyone tries models, driven as its JavaScript does, and once in a browser."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from scripts import generate, gradio_demo, recon_single_image
from tests.refusals import refused
from tests.scripts.conftest import ROOT
from tests.scripts.flow_exports import command
from wfimagevae.model.flow.velocity_model import VelocityModel

VALUES = {"prompt": "", "negative_prompt": "", "label": "", "count": 2, "seed": 0}
VALUES |= {"height": 0, "width": 0}
HOW = {"model": "", "sampler": "", "steps": 2, "guidance_scale": 1}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """A running page, in whose folder its files are."""

    def __init__(self, folder, *words):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url, self.folder, self.sessions = f"http://127.0.0.1:{self.port}", folder, 0
        flags = ("--device", "cpu", "--port", self.port, "--queue_size", 2)
        script = [sys.executable, ROOT / "scripts" / "gradio_demo.py", *words, *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
        self.process = subprocess.Popen(
            [str(word) for word in script],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = []  # until its last words, which come when it has reached itself
        for line in iter(self.process.stdout.readline, ""):
            said.append(line)
            if "To create a public link" in line:
                break
        assert self.url in "".join(said[:-1]), said
        self.config = requests.get(f"{self.url}/config").json()
        self.events = {event["api_name"]: event for event in self.config["dependencies"]}

    def join(self, event, *values):
        """Puts a click into the queue; the response, and the session's name."""
        self.sessions += 1
        body = {"fn_index": self.events[event]["id"], "session_hash": f"s{self.sessions}"}
        where = f"{self.url}/gradio_api/queue/join"
        return requests.post(where, json=body | {"data": values}), body["session_hash"]

    def wait(self, session):
        """The messages of a click until its end, whose output comes last."""
        where, messages = f"{self.url}/gradio_api/queue/data", []
        with requests.get(where, params={"session_hash": session}, stream=True) as answer:
            for line in answer.iter_lines():
                if line.startswith(b"data:"):
                    messages.append(json.loads(line[5:]))
                    if messages[-1]["msg"] == "process_completed":
                        return messages
        raise AssertionError(messages)

    def click(self, event, *values):
        """What a click shows; an error's text where it fails."""
        response, session = self.join(event, *values)
        assert response.ok, response.text
        output = self.wait(session)[-1]["output"]
        return output.get("data") or output["error"]

    def draw(self, event="draw", sides=(HOW,), **changes):
        """A click on Draw, with these values of controls, as the event orders them."""
        what = {key: changes.pop(key, value) for key, value in VALUES.items()}
        how = [value for side in sides for value in ({**side, **changes}).values()]
        return self.click(event, *what.values(), *how)

    def upload(self, path):
        """Drops a file on the page; what stands for it there."""
        with open(path, "rb") as file:
            answer = requests.post(f"{self.url}/gradio_api/upload", files={"files": file})
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    def close(self):
        """Ends it as a service manager does; its status."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture(scope="module")
def page(pixels, text_flow, tiny_vae, tmp_path_factory):
    """A page with a flow of classes, one of text, and an autoencoder, which leaves nothing."""
    folder = tmp_path_factory.mktemp("page")
    words = ("--from_pretrained", pixels, text_flow, "--autoencoder", f"WFVAE2Image:{tiny_vae}")
    page = Page(folder, *words)
    yield page
    assert page.close() == 0 and list(folder.iterdir()) == []


def names_of(gallery):
    return [Path(item["image"]["path"]).stem for item in gallery]


def pixels_of(gallery):
    return [np.asarray(Image.open(item["image"]["path"])).astype(int) for item in gallery]


def test_pictures_come_with_records_by_which_generate_draws_them_again(page, text_flow, tmp_path):
    gallery, files = page.draw(model=str(text_flow), prompt="a Red circle!", seed=5, count=3)
    assert names_of(gallery) == ["a-red-circle", "a-red-circle-1", "a-red-circle-2"]
    assert [item["caption"] for item in gallery][1:] == [
        f"seed 5, {i}: a Red circle!" for i in (1, 2)
    ]
    archive, *others = [Path(file["path"]) for file in files]
    kinds = [path.suffix for path in others]
    assert kinds.count(".json") == 4 and kinds.count(".png") == 4  # and the sheet's of all
    zipfile.ZipFile(archive).extractall(tmp_path)
    again = tmp_path / "again"
    words = ("--output_dir", again, "--device", "cpu")
    command(generate, "--from_json", tmp_path / "samples" / "a-red-circle-1.png", *words)
    assert (again / "a-red-circle-1.png").read_bytes() == Path(
        gallery[1]["image"]["path"]
    ).read_bytes()


def test_every_step_is_told(page, pixels):
    _, session = page.join("draw", *VALUES.values(), str(pixels), "euler", 4, 1)
    messages = page.wait(session)
    steps = [
        (told["index"], told["length"], told["unit"])
        for message in messages
        if message["msg"] == "progress"
        for told in message["progress_data"]
    ]
    assert steps and set(steps) <= {(i, 4, "steps") for i in range(5)}
    assert steps == sorted(steps)


def test_classes_come_in_turn_or_by_name(page, pixels):
    gallery, _ = page.draw(model=str(pixels))
    assert [item["caption"][-6:] for item in gallery] == ["circle", "square"]
    gallery, _ = page.draw(model=str(pixels), label="square")
    assert names_of(gallery) == ["000000-square", "000001-square"]


def test_two_sides_start_from_the_same_noise(page, pixels, text_flow):
    same = HOW | {"model": str(text_flow)}
    left, _, right, _ = page.draw("draw_1", (same, same), prompt="x", steps=3)
    assert np.array_equal(pixels_of(left), pixels_of(right))
    other = HOW | {"model": str(pixels), "steps": 1}
    left, _, right, _ = page.draw("draw_1", (same, other), prompt="x")
    assert names_of(left) == ["x", "x-1"] and names_of(right) == ["000000-circle", "000001-square"]


def test_a_photograph_comes_back_with_its_error_and_its_latents(page, tiny_vae, photos, tmp_path):
    path = photos / "a" / "one.jpg"
    shown = page.click("reconstruct", f"WFVAE2Image:{tiny_vae}", page.upload(path))
    original, result, error = [np.asarray(Image.open(part["path"]), int) for part in shown[:3]]
    words = ("--image_path", path, "--rec_path", tmp_path / "out.png", "--device", "cpu")
    command(recon_single_image, "--from_pretrained", tiny_vae, *words)
    assert np.array_equal(result, np.asarray(Image.open(tmp_path / "out.png")))
    assert np.array_equal(original, np.asarray(Image.open(path)))
    assert np.array_equal(error, (abs(original - result) * 5).clip(0, 255))
    decibels = -10 * np.log10(((original - result) ** 2).mean() / 255**2)
    assert shown[3] == f"**PSNR {decibels:.2f} dB** at 70 x 50 px"
    channels = pixels_of(shown[4])
    assert len(channels) == 4 and {channel.shape for channel in channels} == {(7, 9)}
    assert all((channel.min(), channel.max()) == (0, 255) for channel in channels)
    assert re.fullmatch(r"3: -?\d+\.\d\d to -?\d+\.\d\d", shown[4][3]["caption"])


def test_what_cannot_be_done_is_said_without_flags(page, pixels, text_flow, tiny_vae, tmp_path):
    text, classes = {"model": str(text_flow)}, {"model": str(pixels)}
    for changes, message in (
        (text | {"negative_prompt": "x"}, "negative prompt acts through guidance: give a"),
        (text | {"label": "circle"}, "circle asked of a model without classes"),
        (classes | {"height": 40}, "images of 40 x 16 pixels asked of a model that makes 16 x 16"),
        (classes | {"sampler": "mean_flow"}, "is not in the list of choices"),
        (classes | {"count": 1000}, "greater than maximum value 16"),
        (classes | {"steps": 10**9}, "greater than maximum value 1000"),
    ):
        assert message in page.draw(**changes), changes
    (tmp_path / "page.png").write_text("no picture")
    dropped = page.upload(tmp_path / "page.png")
    for photograph, message in ((None, "drop a photograph"), (dropped, "cannot be used: not a")):
        assert message in page.click("reconstruct", f"WFVAE2Image:{tiny_vae}", photograph)


def test_no_path_from_the_page_is_opened(page, tiny_vae, photos):
    model, mark = f"WFVAE2Image:{tiny_vae}", {"meta": {"_type": "gradio.FileData"}}
    path = str(photos / "a" / "two.png")  # which is one, but not an upload
    for photograph in ({"path": path}, {"path": path} | mark, {"path": path, "url": path} | mark):
        shown = page.click("reconstruct", model, photograph)
        assert shown is None or "drop a photograph" in shown
    assert "not in the list of choices" in page.click("reconstruct", f"WFVAE2Image:{path}", None)
    assert "not in the list of choices" in page.draw(model=str(tiny_vae))
    for private in (path, tiny_vae / "config.json", "/etc/passwd"):
        assert requests.get(f"{page.url}/gradio_api/file={private}").status_code == 403


def test_the_queue_has_an_end_and_no_way_past_it(page, pixels):
    values = (*VALUES.values(), str(pixels), "heun", 120, 1)
    clicks = [page.join("draw", *values) for _ in range(5)]
    full = [response.text for response, _ in clicks if response.status_code == 503]
    assert full and all("Queue is full" in text for text in full)
    for response, session in clicks:
        assert not response.ok or page.wait(session)[-1]["success"]
    direct = requests.post(f"{page.url}/gradio_api/run/draw", json={"data": values})
    assert direct.status_code == 404


def test_large_photographs_are_shrunk(tiny_vae, tmp_path, monkeypatch):
    from wfimagevae.generate.autoencoders import load_autoencoder

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(gradio_demo, "MAX_SIDE", 32)
    autoencoder = load_autoencoder(f"WFVAE2Image:{tiny_vae}")
    for size, expected in (((64, 48), (32, 24)), ((32, 32), (32, 32)), ((640, 1), (640, 1))):
        Image.new("RGB", size, "red").save(tmp_path / "red.png")
        image, *_ = gradio_demo.reconstruct(autoencoder, str(tmp_path / "red.png"))
        assert image.size == expected


def test_a_page_that_cannot_start_says_why(page, pixels, points, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # and what it was, afterwards
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    refused("give --from_pretrained or --autoencoder", command, gradio_demo)
    refused("makes points", command, gradio_demo, "--from_pretrained", points)
    flow = ("--from_pretrained", pixels, "--port", page.port)
    refused("empty port", command, gradio_demo, *flow, error=OSError)
    with monkeypatch.context() as patch:  # as an upsampler, or what fills in images
        patch.setattr(VelocityModel, "needs", ("low_res",))
        refused("flow needs low_res, which the page cannot give", command, gradio_demo, *flow)
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused("pip install gradio", command, gradio_demo, *flow)


def test_make_demo_names_what_to_run_first(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "hf_flow is missing: run make quickstart first" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not (CHROMIUM and find_spec("playwright")),
    reason="needs Chromium and its driver: apt-get install chromium; pip install playwright",
)
def test_a_browser_types_clicks_and_sees_pictures(page, photos):
    from playwright.sync_api import expect, sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        hosts = set()
        tab.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        tab.goto(page.url)
        prompt = tab.get_by_label("Prompt", exact=True).first
        tab.get_by_role("button", name="a red circle").first.click()
        expect(prompt).to_have_value("a red circle")
        prompt.fill("a green ring")
        tab.get_by_label("Model").first.click()
        tab.get_by_role("option").nth(1).click()
        tab.get_by_role("button", name="Draw").first.click()
        picture = tab.locator("img[src*='a-green-ring']:visible").first
        picture.wait_for()
        assert picture.evaluate("image => image.naturalWidth") == 16
        tab.get_by_role("tab", name="Reconstruct").click()
        tab.locator("input[type=file]").first.set_input_files(photos / "a" / "one.jpg")
        tab.get_by_alt_text("uploaded").or_(tab.locator(".image-frame img")).first.wait_for()
        tab.get_by_role("button", name="Reconstruct", exact=True).last.click()
        tab.get_by_text("PSNR").wait_for()
        assert hosts == {f"127.0.0.1:{page.port}"}
        browser.close()
