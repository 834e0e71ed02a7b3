"""Small shards for tests, written by the webdataset library or byte by byte."""

import io
import json
import tarfile

import webdataset
from PIL import Image

from wfimagevae.dataset import CropDataset, CropRules, ShardOrder, open_shards
from wfimagevae.dataset.images.image_sets import ImageParts, open_folder
from wfimagevae.dataset.images.labels import Labels
from wfimagevae.dataset.options import StreamOptions, WriteOptions
from wfimagevae.dataset.shards.write import ShardWriter
from wfimagevae.dataset.text.captions import Captions


def png(value, width=12, height=12):
    """A PNG file of one gray value."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (value,) * 3).save(file, "PNG")
    return file.getvalue()


def write_shards(folder, counts, sample=None, name="s"):
    """Shards whose sample i, over all shards, has the gray value 3 i + 1; paths, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, number = [], 0
    for shard, count in enumerate(counts):
        path = folder / f"{name}-{shard:03d}.tar"
        with webdataset.TarWriter(str(path)) as writer:
            for _ in range(count):
                own = {"png": png(3 * number + 1), "txt": f"caption {number}", "cls": number % 3}
                more = {} if sample is None else sample(number)
                members = {"__key__": f"{number:05d}"} | own | more
                writer.write({key: value for key, value in members.items() if value is not None})
                number += 1
        paths.append(path)
    return paths


def write_tar(path, members):
    """A tar file of members by name."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def written_shards(source, folder, labels="none", captions="none"):
    """Shards that make_webdataset.py writes of a folder or manifest; their folder, as text."""
    samples = open_folder(source, ImageParts(Labels(labels), Captions(captions)))
    writer = ShardWriter(samples, WriteOptions(output_dir=str(folder)))
    for number in range(writer.num_shards):
        writer.write(number)
    writer.write_record()
    return str(folder)


def open_set(
    specs,
    with_captions=False,
    with_labels=False,
    with_records=False,
    caption_prefix="",
    index_cache_dir=None,
    **keys,
):
    """The samples of shards, nothing besides images unless asked for; ``keys`` without ``wds_``."""
    wanted = ImageParts(
        Labels("manifest" if with_labels else "none"),
        Captions("sidecar" if with_captions else "none", caption_prefix),
        records=with_records,
        index_cache_dir=index_cache_dir,
    )
    specs = specs if isinstance(specs, list) else [specs]
    options = StreamOptions(**{f"wds_{name}": value for name, value in keys.items()})
    return open_shards(specs, wanted, options)


def dataset(found, size=8, seed=1234, group_size=2, **options):
    """Crops of an image set, in the order that training reads shards in."""
    order = ShardOrder(found.shard, seed, group_size)
    rules = CropRules(size, **options)
    return CropDataset(found.images, rules, seed, order, found.labels, found.captions)


def numbers(batch):
    """Which samples of `write_shards` a batch shows."""
    gray = batch["image"][:, 0].mean(dim=(1, 2)).add(1).mul(127.5).round()
    return ((gray - 1) / 3).int().tolist()


def as_json(**fields):
    """A json member."""
    return json.dumps(fields).encode()
