"""The scripts of legacy/ on clips that the tests write."""

import json
import shutil

import av
import numpy as np
import pytest
import torch
from PIL import Image

from clips import read_clip, write_clip
from legacy import eval_video, make_example, recon_single_image, recon_single_video, recon_video
from tests.eval.conftest import alexnet_weights  # noqa: F401
from tests.legacy.conftest import moving_square
from tests.refusals import refused
from tests.scripts.flow_exports import command
from wfvae_video import WFVAE

CPU = ("--device", "cpu")


def pixels(path, count=99):
    """8-bit frames of a file, (3, T, H, W)."""
    return ((read_clip(path, range(count)).frames + 1) * 127.5).round().int()


def single(model, video, rec, *more):
    words = ("--from_pretrained", model, "--video_path", video, "--rec_path", rec, *CPU)
    return command(recon_single_video, *words, *more)


def test_a_video_keeps_frames_and_rate_and_is_the_models(
    tiny_video_vae, video_clips, tmp_path, capsys
):
    source, target = video_clips / "a" / "wide.mp4", tmp_path / "new" / "rec.mp4"
    single(tiny_video_vae, source, target, "--height", 40, "--width", 64, "--lossless")
    x = read_clip(source, range(12)).frames[None]
    assert x.shape == (1, 3, 12, 40, 64)  # 12 frames are not 1 + 4 k
    model = WFVAE.from_pretrained(tiny_video_vae)
    padded = torch.cat([x, x[:, :, -1:]], dim=2)
    with torch.no_grad():
        y = model(padded, sample_posterior=False).sample[0, :, :12]
    expected = ((y.clamp(-1, 1) + 1) * 127.5).round()
    assert (pixels(target) - expected).abs().max() <= 1
    assert read_clip(target, [0]).rate == 25
    error = (pixels(target) - pixels(source)).square().flatten(2).float().mean((0, 2))
    mean = (10 * (255**2 / error).log10()).mean()
    told = capsys.readouterr().out
    assert f"12 frames of 64x40 at 25 a second, PSNR {mean:.2f} dB" in told
    with Image.open(target.with_name("rec-frames.png")) as sheet:
        assert sheet.width > 3 * 64 and sheet.height > 6 * 40


def test_tiling_and_chosen_frames_and_rates(tiny_video_vae, video_clips, tmp_path):
    source, sizes = video_clips / "a" / "wide.mp4", ("--height", 24, "--width", 16)
    more = (*sizes, "--lossless", "--num_frames", 5, "--sample_rate", 2)
    single(tiny_video_vae, source, tmp_path / "a.mkv", *more)
    single(tiny_video_vae, source, tmp_path / "b.mkv", *more, "--enable_tiling", "--fps", 7)
    assert (pixels(tmp_path / "a.mkv") - pixels(tmp_path / "b.mkv")).abs().max() <= 1
    assert read_clip(tmp_path / "a.mkv", [0]).rate == 12.5
    assert read_clip(tmp_path / "b.mkv", [0]).rate == 7
    # A clip shorter than asked for gives the frames that it has.
    short = video_clips / "short.mov"
    single(tiny_video_vae, short, tmp_path / "c.mp4", *sizes, "--mixed_precision", "bf16")
    assert pixels(tmp_path / "c.mp4").shape == (3, 2, 24, 16)


def test_any_shape_is_cropped_and_never_stretched(tmp_path):
    frames = torch.zeros(1, 60, 100, 3, dtype=torch.uint8)
    frames[:, 20:40, 40:60] = 255  # a square in the middle
    for shape in ((60, 100), (100, 60)):
        turned = frames if shape == (60, 100) else frames.transpose(1, 2)
        write_clip(tmp_path / "a.mkv", turned, 10, lossless=True)
        for size in ((32, 32), (24, 40), (40, 24)):
            clip = read_clip(tmp_path / "a.mkv", [0], size).frames
            assert clip.shape == (3, 1, *size)
            bright = clip[0, 0] > 0
            assert abs(int(bright.any(0).sum()) - int(bright.any(1).sum())) <= 1
            rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
            assert abs(rows.float().mean() - (size[0] - 1) / 2) < 1
            assert abs(columns.float().mean() - (size[1] - 1) / 2) < 1


def test_turned_videos_are_read_upright(tmp_path):
    frames = torch.zeros(2, 32, 64, 3, dtype=torch.uint8)
    frames[:, :, :32] = 255  # the left half
    write_clip(tmp_path / "a.mp4", frames, 24, lossless=True)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44  # of the track, as a phone writes it
    turned = np.array([0, 65536, 0, -65536, 0, 0, 0, 0, 2**30], dtype=">i4").tobytes()
    content[matrix : matrix + 36] = turned
    (tmp_path / "a.mp4").write_bytes(content)
    clip = pixels(tmp_path / "a.mp4")
    assert clip.shape == (3, 2, 64, 32)
    assert (clip[:, :, :32] == 255).all() and (clip[:, :, 32:] == 0).all()


@pytest.mark.parametrize("lossless", [False, True])
def test_colours_come_back(lossless, tmp_path):
    colours = torch.tensor([[200, 30, 40], [20, 180, 60], [30, 40, 220]], dtype=torch.uint8)
    frames = colours[:, None, None].expand(3, 32, 32, 3).contiguous()
    write_clip(tmp_path / "a.mp4", frames, 24, lossless)
    found = pixels(tmp_path / "a.mp4")[:, :, 16, 16].T
    assert (found - colours.int()).abs().max() <= (0 if lossless else 4)


def test_one_image(tiny_video_vae, tmp_path, capsys):
    image = moving_square(1, 51, 70)[0].numpy()
    Image.fromarray(image).save(tmp_path / "a.png")
    words = ("--from_pretrained", tiny_video_vae, "--image_path", tmp_path / "a.png", *CPU)
    command(recon_single_image, *words, "--rec_path", tmp_path / "b.png", "--short_size", 51)
    with Image.open(tmp_path / "b.png") as restored:
        assert restored.size == (64, 48)
        error = np.asarray(restored).astype(float) - image[2:50, 3:67]  # centres, at their size
    mean = 10 * np.log10(255**2 / np.square(error).mean())
    told = capsys.readouterr().out
    assert f"64x48, PSNR {mean:.2f} dB" in told and (tmp_path / "b-frames.png").is_file()
    refused("is the original", command, recon_single_image, *words, "--rec_path",
            tmp_path / "a.png")  # fmt: skip
    refused("less than the factor", command, recon_single_image, *words, "--rec_path",
            tmp_path / "c.png", "--short_size", 5)  # fmt: skip


def folder(model, real, generated, *more):
    words = ("--real_video_dir", real, "--generated_video_dir", generated, "--resolution", 32)
    words += ("--num_workers", 0, *CPU, "--from_pretrained", model)
    return command(recon_video, *words, *more)


def measure(real, generated, *more):
    words = ("--real_video_dir", real, "--generated_video_dir", generated, "--num_workers", 0)
    return command(eval_video, *words, *CPU, *more)


def test_a_folder_keeps_paths_and_is_measured(
    tiny_video_vae, video_clips, tmp_path, capsys, alexnet_weights  # noqa: F811
):  # fmt: skip
    out, json_file = tmp_path / "out", tmp_path / "m.json"
    options = ("--lossless", "--output_origin", "--contact_sheets", "--batch_size", 2)
    assert folder(tiny_video_vae, video_clips, out, *options) == 0
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.mp4"))
    expected = ["a/tall.mp4", "a/wide.mp4", "short.mp4"]
    assert names == sorted([*expected, *(f"origin/{name}" for name in expected)])
    assert (out / "a" / "wide-frames.png").is_file()
    assert pixels(out / "a" / "wide.mp4").shape == (3, 12, 32, 32)
    assert float(read_clip(out / "a" / "tall.mp4", [0]).rate) == pytest.approx(30000 / 1001)
    means = [float(line.split()[-2]) for line in capsys.readouterr().out.splitlines()[:3]]
    lpips = ("--lpips_weights", alexnet_weights, "--output_json", json_file)
    assert measure(video_clips, out, "--resolution", 32, *lpips) == 0
    found = json.loads(json_file.read_text())
    # The mean over frames; videos have 9, 12 and 2 of them.
    assert found["psnr"] == pytest.approx(np.average(means, weights=[9, 12, 2]), abs=0.01)
    assert -1 < found["ssim"] < 1 and found["lpips"] > 0
    assert found["protocol"]["frames"] == 23 and found["protocol"]["videos"] == 3
    # Originals as they were seen are the same protocol, and equal themselves.
    assert measure(out / "origin", out, "--resolution", 32, "--metric", "psnr") == 0
    assert f"{found['psnr']:.2f}" in capsys.readouterr().out
    assert measure(out / "origin", out / "origin", "--resolution", 32, "--metric", "ssim") == 0
    assert "1.0000" in capsys.readouterr().out


def test_damaged_videos_are_listed_and_pairs_that_do_not_fit(
    tiny_video_vae, video_clips, tmp_path, capsys
):
    real = shutil.copytree(video_clips, tmp_path / "real")
    (real / "bad.mp4").write_text("no video")
    out = tmp_path / "out"
    assert folder(tiny_video_vae, real, out, "--num_frames", 5) == 1
    told = capsys.readouterr()
    assert "reconstructed 3 of 4 videos" in told.out
    assert "left out: bad.mp4: " in told.err and "is no readable video" in told.err
    psnr = ("--resolution", 32, "--metric", "psnr")
    assert measure(real, out, *psnr, "--num_frames", 9) == 1
    told = capsys.readouterr()
    assert "| metric | 2 frames of 1 videos |" in told.out
    assert "wide.mp4 has [5, 32, 32] frames, height and width, its original [9, 32, 32]" in told.err
    (out / "short.mp4").unlink()
    refused("1 originals have no reconstruction: short.mov", measure, real, out, *psnr)


def test_folders_in_each_other_and_empty_ones_are_refused(tiny_video_vae, video_clips, tmp_path):
    for target in (video_clips, video_clips / "b", video_clips.parent):
        refused("lie in each other", folder, tiny_video_vae, video_clips, target)
    refused("holds no videos", folder, tiny_video_vae, tmp_path, tmp_path / "b")
    refused("is no folder", folder, tiny_video_vae, tmp_path / "none", tmp_path / "b")


def test_two_processes_share_a_folder(tiny_video_vae, video_clips, tmp_path, run_legacy):
    words = ["--from_pretrained", tiny_video_vae, "--real_video_dir", video_clips, *CPU]
    words += ["--generated_video_dir", "out", "--resolution", 32, "--num_workers", 0, "--lossless"]
    done = run_legacy("recon_video.py", *words, cwd=tmp_path, processes=2)
    assert done.stdout.count("reconstructed 3 of 3 videos into out") == 1
    folder(tiny_video_vae, video_clips, tmp_path / "one", "--lossless")
    for path in (tmp_path / "one").rglob("*.mp4"):
        other = tmp_path / "out" / path.relative_to(tmp_path / "one")
        assert (pixels(path) - pixels(other)).abs().max() <= 1


def test_what_is_no_video_is_said_in_a_line(tiny_video_vae, video_clips, tmp_path, run_legacy):
    (tmp_path / "text.txt").write_text("no video\n" * 99)
    (tmp_path / "text.mp4").write_text("no video\n" * 99)
    with av.open(str(tmp_path / "none.mkv"), "w") as container:  # a stream without a frame
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 16
        container.start_encoding()
    content = bytearray((video_clips / "a" / "wide.mp4").read_bytes())
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name, words in (
        ("text.txt", "is no video"),
        ("text.mp4", "is no readable video: Invalid data"),
        ("sound.mp4", "is no video"),
        ("none.mkv", "is no readable video"),
    ):
        refused(words, single, tiny_video_vae, tmp_path / name, tmp_path / "rec.mp4")
    with pytest.raises(OSError, match="No such file"):
        single(tiny_video_vae, tmp_path / "missing.mp4", tmp_path / "rec.mp4")
    good, sizes = video_clips / "a" / "wide.mp4", ("--height", 36, "--width", 64)
    rec = tmp_path / "rec.mp4"
    refused("multiples of 8, got 36x64", single, tiny_video_vae, good, rec, *sizes)
    refused("is the original", single, tiny_video_vae, good, good)
    refused("unknown extension; write one of .mp4", single, tiny_video_vae, good, "rec.gif")
    assert good.read_bytes() == content and not rec.exists()
    # As a user sees them.
    words = ["--video_path", good, "--rec_path", rec, *CPU, "--from_pretrained", tiny_video_vae]
    for more, text in (
        (["--model_name", "vae"], "argument --model_name: invalid choice: 'vae'"),
        (["--model_name", "WFVAE2"], "is of a WFVAE, not of a WFVAE2"),
    ):
        failed = run_legacy("recon_single_video.py", *words, *more, cwd=tmp_path, status=2)
        assert text in failed.stderr and failed.stderr.count("\n") == 1


def test_damage_in_the_middle_is_told(tmp_path):
    noise = torch.randint(0, 256, (40, 64, 64, 3), dtype=torch.uint8)
    write_clip(tmp_path / "a.mkv", noise, 24)
    content = bytearray((tmp_path / "a.mkv").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    (tmp_path / "a.mkv").write_bytes(content)
    assert read_clip(tmp_path / "a.mkv", range(8)).frames.shape[1] == 8
    refused("is damaged after", read_clip, tmp_path / "a.mkv", range(40))


def test_the_example_of_the_readme(tmp_path, capsys):
    command(make_example, "--output_dir", tmp_path, "--num_frames", 5)
    rec = tmp_path / "coffee.mp4"
    sizes = ("--height", 48, "--width", 64)
    single(tmp_path / "model", tmp_path / "clips" / "coffee.mp4", rec, *sizes)
    told = capsys.readouterr()
    assert "5 frames of 64x48 at 24 a second, PSNR" in told.out and "entries" not in told.err
    first, last = (pixels(tmp_path / "clips" / "coffee.mp4")[:, i] for i in (0, 4))
    assert first.shape == (3, 144, 192) and (first - last).abs().float().mean() > 20
