# SPDX-License-Identifier: Apache-2.0
"""What mount_torch.py has another Python do, one that has torch: torch_load.py CASE,... ARGUMENT..."""
import ctypes
import os
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file


def same(got, path):
    """Tensors are those of a safetensors file that lies outside the mount."""
    want = load_file(path)
    assert got.keys() == want.keys(), (sorted(got), sorted(want))
    for k, v in want.items():
        assert got[k].dtype == v.dtype and got[k].shape == v.shape and torch.equal(got[k], v), k


def save(top, size):
    """A small BERT with weights of its own, as a repository in shards."""
    from transformers import BertConfig, BertModel
    torch.manual_seed(7)
    BertModel(BertConfig(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=256,
                         vocab_size=2000)).save_pretrained(top, max_shard_size=size, safe_serialization=True)


def pretrained(name, want, closeness):
    """AutoModel.from_pretrained of a directory, or from the hub and what is cached of it,
    beside a model that lies outside the mount: how far each weight may be off."""
    from transformers import AutoModel
    got, info = AutoModel.from_pretrained(name, output_loading_info=True)
    assert not any(info.values()), info
    got, want = got.state_dict(), AutoModel.from_pretrained(want).state_dict()
    assert got.keys() == want.keys()
    off = 0
    for k, v in want.items():
        d = ((got[k] - v).abs().sum() / v.abs().sum()).item() if v.is_floating_point() and v.any() else 0.0
        assert d <= float(closeness) and (d > 0 or torch.equal(got[k], v)), (k, d)
        off += d > 0
    assert bool(off) == (float(closeness) > 0), f"{off} tensors differ"


def safetensors(path, want):
    """Its two ways to read, and slices."""
    same(load_file(path), want)
    with safe_open(path, framework="pt") as f:
        same({k: f.get_tensor(k) for k in f.keys()}, want)
        same({k: f.get_slice(k)[:] for k in f.keys() if f.get_slice(k).get_shape()} |
             {k: f.get_tensor(k) for k in f.keys() if not f.get_slice(k).get_shape()}, want)


def fastsafetensors(path, want):
    """The loader that vLLM uses, its threads that pread (for which a short read is fatal),
    and its way by mmap."""
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup, cpp
    loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
    loader.add_filenames({0: [path]})
    buffers = loader.copy_files_to_device()
    same({k: buffers.get_tensor(k) for k in loader.get_keys()}, want)
    buffers.close()
    loader.close()
    with open(want, "rb") as f:
        data = f.read()
    for by_mmap in (False, True):
        out = ctypes.create_string_buffer(len(data))
        reader = cpp.nogds_file_reader(by_mmap, 1024, 8, False, 0)
        fd = os.open(path, os.O_RDONLY)
        ok = reader.wait_read(reader.submit_read(
            fd, cpp.gds_device_buffer(ctypes.addressof(out), len(out), False), 0, len(out), 0))
        os.close(fd)
        assert ok and out.raw == data, by_mmap


def runai(path, want):
    """The Run:ai streamer, with several threads on one file."""
    from runai_model_streamer import SafetensorsStreamer
    with SafetensorsStreamer() as s:
        s.stream_file(path)
        same({k: v.clone() for k, v in s.get_tensors()}, want)


CASES = {f.__name__: f for f in (save, pretrained, safetensors, fastsafetensors, runai)}
for case in sys.argv[1].split(","):
    CASES[case](*sys.argv[2:])
    print("done", case)
