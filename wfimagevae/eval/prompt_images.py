"""Images of prompts as files: drawn, scored by CLIP, ranked; what is done is not drawn again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from wfimagevae.engine.device import placed
from wfimagevae.engine.distributed import World
from wfimagevae.eval.clip_score import clip_scores
from wfimagevae.files import json_text, parse_json, read_json, write_json, write_text
from wfimagevae.generate.generated_files import MAX_IN_GRID
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import prompt_subjects
from wfimagevae.model.clip import Clip
from wfimagevae.pictures.grid import sample_grid, save_png
from wfimagevae.pictures.pixels import from_uint8, to_uint8
from wfimagevae.pictures.writer import save_image

METADATA, MANIFEST = "metadata.json", "images.jsonl"


@dataclass(frozen=True)
class PromptImages:
    """Images of prompts in one setting of sampling, as files of a folder; by several processes.

    ``name`` says which setting. Of each prompt ``per_prompt`` are drawn, ``batch_size`` at a time,
    and the ``kept`` best by CLIP, or the first without it, are written to
    ``prompt_000/image_rank_001.png``, ...; and last, with seeds and scores, ``metadata.json``: a
    prompt that has that is done, and not drawn again. Batches are the same on any number of
    processes, whatever was done before.
    """

    folder: Path
    name: str
    prompts: Sequence[str]
    sampling: SamplingOptions
    per_prompt: int
    kept: int
    batch_size: int
    extension: str = "png"

    def files(self, number: int) -> list[Path]:
        """The images of a prompt, the best one first."""
        names = [f"image_rank_{rank:03d}.{self.extension}" for rank in range(1, self.kept + 1)]
        return [self.folder / f"prompt_{number:03d}" / name for name in names]

    def is_done(self, number: int) -> bool:
        files = self.files(number)
        return all(file.is_file() for file in [files[0].with_name(METADATA), *files])

    def draw(self, generator: FlowGenerator, clip: Clip | None, world: World) -> int:
        """Draws this process's share of the prompts that are not done; how many those were.

        While CLIP, which is on the CPU, looks at them on the device, the generator's networks wait
        on the CPU. Samples that are not finite are a ValueError.
        """
        drawn, numbers = 0, range(len(self.prompts))
        size = max(self.batch_size // self.per_prompt, 1)  # prompts that are drawn together
        rounds = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        mine = rounds[world.rank :: world.size]
        for prompts in tqdm(mine, unit="batch", desc=self.name, disable=not world.is_main):
            if waiting := [n for n in prompts if not self.is_done(n)]:
                for number, scores, pixels in self._round(generator, clip, prompts):
                    if number in waiting:
                        self._write(number, scores, pixels, generator)
            drawn += len(waiting)
        return drawn

    def _round(
        self, generator: FlowGenerator, clip: Clip | None, numbers: Sequence[int]
    ) -> Iterator[tuple[int, Tensor | None, Tensor]]:
        """Draws some prompts: number, scores (N,) and images, uint8 (N, 3, H, W), of each."""
        subjects = prompt_subjects([self.prompts[n] for n in numbers], self.per_prompt)
        batches, scores = [], [None] * len(numbers)
        for i in range(0, len(subjects), self.batch_size):
            x = generator.draw(subjects[i : i + self.batch_size], self.sampling)
            batches.append(to_uint8(generator.images(x)).cpu())
        pixels = torch.cat(batches)
        if clip:
            with placed(generator.networks, "cpu"), placed([clip.network], generator.device):
                prompts = [subject.prompt for subject in subjects]
                scores = clip_scores(clip, pixels, prompts, self.batch_size).split(self.per_prompt)
        yield from zip(numbers, scores, pixels.split(self.per_prompt), strict=True)

    def _write(
        self, number: int, scores: Tensor | None, pixels: Tensor, generator: FlowGenerator
    ) -> None:
        order = range(self.per_prompt)
        if scores is not None:
            order = scores.argsort(descending=True, stable=True).tolist()
            scores = scores.tolist()
        files, images = self.files(number), []
        for rank, (file, index) in enumerate(zip(files, order[: self.kept], strict=True), 1):
            save_image(file, pixels[index])
            image = {"rank": rank, "filename": file.name, "clip_score": scores and scores[index]}
            images.append(image | {"seed": self.sampling.seed, "index": index})
        content = {"prompt": self.prompts[number], "prompt_idx": number, "images": images}
        content |= {"num_candidates": self.per_prompt, "candidate_scores": scores}
        sampling = generator.describe(self.sampling)
        write_json(files[0].with_name(METADATA), content | {"sampling": sampling})

    def finish(self) -> dict[str, float]:
        """Writes the manifest of all images, which other commands read; the mean CLIP scores.

        ``clip_score`` is that of all that were drawn, ``clip_score_best`` that of the best image of
        each prompt; without CLIP there are none.
        """
        files = [self.files(n) for n in range(len(self.prompts))]
        lines = [
            {"path": str(file.relative_to(self.folder)), "caption": prompt}
            for prompt, images in zip(self.prompts, files, strict=True)
            for file in images
        ]
        rows = [json.dumps(line, ensure_ascii=False) for line in lines]
        write_text(self.folder / MANIFEST, "\n".join([*rows, ""]))
        found = [read_json(images[0].with_name(METADATA))["candidate_scores"] for images in files]
        if None in found:
            return {}
        scores = torch.tensor(found, dtype=torch.float64)  # (prompts, candidates)
        best = scores.max(1).values
        return {"clip_score": scores.mean().item(), "clip_score_best": best.mean().item()}


def begin(folder: Path, plan: Mapping[str, Any], resume: bool) -> None:
    """Records in a folder what is drawn there and how.

    Raises:
        ValueError: something was drawn there before, and is not to be resumed, or was another.
    """
    record, plan = folder / METADATA, parse_json(json_text(plan))
    before = read_json(record).get("plan", {}) if record.is_file() else None
    if before is None or (before and not any(folder.rglob("image_rank_*"))):
        write_json(record, {"plan": plan})
        return
    if not resume:
        raise ValueError(f"{folder} holds images of prompts: give --resume, or another folder")
    if changed := [name for name in plan if plan[name] != before.get(name)]:
        raise ValueError(
            f"--resume: {folder} was begun with other {', '.join(changed)}: ask for the same as "
            "then, or give another folder"
        )


def save_sheets(folder: Path, runs: Sequence[PromptImages]) -> list[Path]:
    """Contact sheets of each run, and of several one of the best images of each, for comparison.

    A row is a prompt. What is too long for a sheet is continued on others, with numbers.
    """
    sheets = []
    for run in runs:
        ranks = zip(*map(run.files, range(len(run.prompts))), strict=True)
        columns = {f"rank {rank}": files for rank, files in enumerate(ranks, 1)}
        sheets += _save_sheets(run.folder, run.prompts, columns)
    if len(runs) > 1:
        best = {run.name: [run.files(n)[0] for n in range(len(run.prompts))] for run in runs}
        sheets += _save_sheets(folder, runs[0].prompts, best)
    return sheets


def _save_sheets(
    folder: Path, prompts: Sequence[str], columns: Mapping[str, Sequence[Path]]
) -> Iterator[Path]:
    count = max(MAX_IN_GRID // len(columns), 1)
    pages = [range(i, min(i + count, len(prompts))) for i in range(0, len(prompts), count)]
    for number, page in enumerate(pages, 1):
        files = [column[n] for n in page for column in columns.values()]
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        images = from_uint8(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        sheet = sample_grid(images, len(columns), [prompts[n] for n in page], list(columns))
        path = folder / f"contact_sheet{f'_{number:03d}' * (len(pages) > 1)}.png"
        save_png(path, sheet)
        yield path
