#!/usr/bin/env python3
"""Makes one folder of tests/fixtures/golden from a config.json: random bfloat16 weights in Hugging Face's names,
logits of Hugging Face's model in float64, greedy continuations.
usage: tools/make_golden.py CONFIG_JSON OUT_DIR   (needs the packages torch, transformers and safetensors)"""
import contextlib
import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

LENGTHS = [1, 2, 7, 33, 100]
GREEDY = 16
MARGIN = 2e-3  # to the second token: float32 rounding cannot change the first


@contextlib.contextmanager
def float64_everywhere():
    """Hugging Face computes norms, softmax and angles in float32 whatever the model's type; the reference must not."""
    names = {"float": torch.float, "float32": torch.float32}
    method = torch.Tensor.float
    torch.float = torch.float32 = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float, torch.float32, torch.Tensor.float = names["float"], names["float32"], method
        torch.set_default_dtype(torch.float32)


def random_weights(model, generator):
    """Scores, gates and residuals all of order one, so that every field of the config shows in the logits."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * noise
        elif p.dim() == 1:
            value = 0.2 * noise
        elif "embed_tokens" in name:
            value = noise
        else:
            gain = 2.0 if name.endswith("gate.weight") else 1.4 if "q_proj" in name else 1.0
            value = gain * noise / p.shape[-1] ** 0.5
        p.data.copy_(value.to(torch.bfloat16).double())


def make(config, seed):
    """A model, its prompts and their continuations; None where two tokens come too near."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    model = model.double().eval()
    random_weights(model, generator)
    prompts, greedy, logits = [], [], []
    for length in LENGTHS:
        prompt = torch.randint(2, config.vocab_size, (length,), generator=generator).tolist()
        tokens = list(prompt)
        for step in range(GREEDY):
            out = model(torch.tensor([tokens]), use_cache=False).logits[0]
            assert out.dtype == torch.float64
            if step == 0:
                logits.append(out)
            best, second = out[-1].topk(2)[0].tolist()
            if best - second < MARGIN:
                return None
            tokens.append(int(out[-1].argmax()))
        prompts.append(prompt)
        greedy.append(tokens[length:])
    return model, prompts, greedy, logits


def main():
    source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.from_pretrained(source)
    with torch.no_grad(), float64_everywhere():
        made = next(m for m in (make(config, seed) for seed in range(100)) if m)
    model, prompts, greedy, logits = made
    model.to(torch.bfloat16).save_pretrained(out)
    shutil.copyfile(source, out / "config.json")  # as written, not as saved with every default
    (out / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 0, "eos_token_id": 1, "do_sample": False}))
    (out / "golden.json").write_text(json.dumps({
        "reference": "transformers, float64, eager attention", "prompts": prompts, "greedy": greedy,
        "logits": "golden_logits.safetensors: logits.<i> is [len(prompts[i]), vocab] float32"}))
    save_file({f"logits.{i}": l.to(torch.float32).contiguous() for i, l in enumerate(logits)},
              out / "golden_logits.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
