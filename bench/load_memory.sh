#!/usr/bin/env bash
# Peak memory of a start against the bytes of the weights in their final form: makes a checkpoint of random bfloat16
# weights in the shape of a configuration (DeepSeek-V2's names), loads it in several formats, prints a table.
#   bench/load_memory.sh [--duet BUILD/duet] [--work DIR] [models/configs/deepseek-678m.json]
# DIR (default build/load-memory) takes 1.3 GB for that shape.
set -euo pipefail
cd "$(dirname "$0")/.."
duet=build/duet work=build/load-memory
while [[ ${1-} == --* ]]; do
  case $1 in
    --duet) duet=$2 ;; --work) work=$2 ;; *) sed -n '2,5p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
config=${1:-models/configs/deepseek-678m.json}
mkdir -p "$work"
cp "$config" "$work/config.json"
python3 - "$work" <<'PYTHON'
import json, random, struct, sys
work = sys.argv[1]
c = json.load(open(f"{work}/config.json"))
c["torch_dtype"] = "bfloat16"
json.dump(c, open(f"{work}/config.json", "w"))
h, heads, rope, nope, v = c["hidden_size"], c["num_attention_heads"], c["qk_rope_head_dim"], c["qk_nope_head_dim"], c["v_head_dim"]
tensors = {"model.embed_tokens.weight": (c["vocab_size"], h), "model.norm.weight": (h,), "lm_head.weight": (c["vocab_size"], h)}
def mlp(at, inner):
    tensors.update({f"{at}.gate_proj.weight": (inner, h), f"{at}.up_proj.weight": (inner, h), f"{at}.down_proj.weight": (h, inner)})
for i in range(c["num_hidden_layers"]):
    at = f"model.layers.{i}"
    tensors.update({f"{at}.input_layernorm.weight": (h,), f"{at}.post_attention_layernorm.weight": (h,)})
    q = c.get("q_lora_rank")
    if q:
        tensors.update({f"{at}.self_attn.q_a_proj.weight": (q, h), f"{at}.self_attn.q_a_layernorm.weight": (q,),
                        f"{at}.self_attn.q_b_proj.weight": (heads * (nope + rope), q)})
    else:
        tensors[f"{at}.self_attn.q_proj.weight"] = (heads * (nope + rope), h)
    lora = c["kv_lora_rank"]
    tensors.update({f"{at}.self_attn.kv_a_proj_with_mqa.weight": (lora + rope, h), f"{at}.self_attn.kv_a_layernorm.weight": (lora,),
                    f"{at}.self_attn.kv_b_proj.weight": (heads * (nope + v), lora), f"{at}.self_attn.o_proj.weight": (h, heads * v)})
    if i < c["first_k_dense_replace"]:
        mlp(f"{at}.mlp", c["intermediate_size"])
        continue
    tensors[f"{at}.mlp.gate.weight"] = (c["n_routed_experts"], h)
    for e in range(c["n_routed_experts"]):
        mlp(f"{at}.mlp.experts.{e}", c["moe_intermediate_size"])
    mlp(f"{at}.mlp.shared_experts", c["moe_intermediate_size"] * c["n_shared_experts"])
header, offset = {}, 0
for name, shape in tensors.items():
    size = 2
    for d in shape:
        size *= d
    header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
    offset += size
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
rng = random.Random(1)
block = b"".join(struct.pack("<f", rng.gauss(0, 0.02))[2:] for _ in range(1 << 19))  # bf16: the upper half
with open(f"{work}/model.safetensors", "wb") as out:
    out.write(struct.pack("<Q", len(text)) + text)
    while offset > 0:
        offset -= out.write(block[:offset])
PYTHON
echo "| weights | in their final form, MiB | KV, activations, scratch, MiB | peak, MiB | peak less the latter / weights |"
echo "|---|---|---|---|---|"
for flags in "--dtype bfloat16" "--dtype float32" "--dtype bfloat16 -q w8a8"; do
  # shellcheck disable=SC2086 # several words
  python3 - "$duet" "$work" $flags --max-model-len 64 --max-num-batched-tokens 32 --kv-cache-memory 16MiB <<'PYTHON'
import json, resource, subprocess, sys
duet, work, *flags = sys.argv[1:]
plan = json.loads(subprocess.run([duet, "inspect", work, *flags, "--json", "-"], check=True, capture_output=True).stdout)["per_rank"]
subprocess.run([duet, "bench", "engine", work, *flags, "--threads", "1", "--prompt-tokens", "16", "--gen-tokens", "1", "--repeats", "1",
                "--batch", "1"], check=True, capture_output=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
weights = plan["weights"]
rest = plan["total"] - weights
print(f"| {' '.join(flags[:flags.index('--max-model-len')])} | {weights >> 20} | {rest >> 20} | {peak >> 20} | {(peak - rest) / weights:.3f} |")
PYTHON
done
