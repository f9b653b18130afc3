"""Writes a GGUF with random float32 weights in the shape of a config.json, so that llama.cpp and its forks can be
measured beside Duet: bench/peers.sh runs it. LlamaForCausalLM, and DeepseekV2ForCausalLM without a query latent.
usage: make_random_gguf.py CONFIG_JSON OUT.gguf   (needs the packages gguf and numpy)"""
import json
import sys

import gguf
import numpy as np


def add_sizes(w, c):
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_rope_freq_base(float(c["rope_theta"]))
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    w.add_file_type(0)


def add_vocabulary(w, size):
    tokens = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{i:02X}>".encode() for i in range(256)]
    words = size - len(tokens)
    w.add_string("tokenizer.ggml.model", "llama")
    w.add_token_list(tokens + [f"\u2581t{i}".encode() for i in range(words)])
    w.add_token_scores([0.0] * len(tokens) + [-float(i) for i in range(words)])
    w.add_token_types([2, 3, 3] + [6] * 256 + [1] * words)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_add_bos_token(True)


class Tensors:
    def __init__(self, writer):
        self.writer, self.rng = writer, np.random.default_rng(1)

    def matrix(self, name, *shape):
        self.writer.add_tensor(name + ".weight", self.rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02))

    def ones(self, name, n):
        self.writer.add_tensor(name + ".weight", np.ones(n, dtype=np.float32))

    def mlp(self, prefix, suffix, hidden, *sizes):
        self.matrix(f"{prefix}ffn_gate{suffix}", *sizes, hidden)
        self.matrix(f"{prefix}ffn_up{suffix}", *sizes, hidden)
        self.matrix(f"{prefix}ffn_down{suffix}", *sizes[:-1], hidden, sizes[-1])


def llama(c, w, t):
    head, heads, kv = c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"]
    hidden = c["hidden_size"]
    w.add_key_length(head)
    w.add_value_length(head)
    w.add_rope_dimension_count(head)

    def layer(p, _):
        t.matrix(p + "attn_q", heads * head, hidden)
        t.matrix(p + "attn_k", kv * head, hidden)
        t.matrix(p + "attn_v", kv * head, hidden)
        t.matrix(p + "attn_output", hidden, heads * head)
        t.mlp(p, "", hidden, c["intermediate_size"])
    return layer


def deepseek2(c, w, t):
    hidden, heads, latent = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    experts, width = c["n_routed_experts"], c["moe_intermediate_size"]
    w.add_leading_dense_block_count(c["first_k_dense_replace"])
    w.add_kv_lora_rank(latent)
    w.add_key_length(nope + rope)
    w.add_value_length(value)
    w.add_rope_dimension_count(rope)
    w.add_expert_feed_forward_length(width)
    w.add_expert_count(experts)
    w.add_expert_used_count(c["num_experts_per_tok"])
    w.add_expert_shared_count(c["n_shared_experts"])
    w.add_expert_weights_scale(c["routed_scaling_factor"])

    def layer(p, index):
        t.matrix(p + "attn_q", heads * (nope + rope), hidden)
        t.matrix(p + "attn_kv_a_mqa", latent + rope, hidden)
        t.ones(p + "attn_kv_a_norm", latent)
        t.matrix(p + "attn_kv_b", heads * (nope + value), latent)
        t.matrix(p + "attn_output", hidden, heads * value)
        if index < c["first_k_dense_replace"]:
            t.mlp(p, "", hidden, c["intermediate_size"])
            return
        t.matrix(p + "ffn_gate_inp", experts, hidden)
        t.mlp(p, "_exps", hidden, experts, width)
        t.mlp(p, "_shexp", hidden, width * c["n_shared_experts"])
    return layer


FAMILIES = {"LlamaForCausalLM": ("llama", llama), "DeepseekV2ForCausalLM": ("deepseek2", deepseek2)}


def main():
    with open(sys.argv[1]) as file:
        c = json.load(file)
    name, family = FAMILIES[c["architectures"][0]]
    w = gguf.GGUFWriter(sys.argv[2], name)
    w.add_name("random weights")
    add_sizes(w, c)
    add_vocabulary(w, c["vocab_size"])
    t = Tensors(w)
    layer = family(c, w, t)
    t.matrix("token_embd", c["vocab_size"], c["hidden_size"])
    t.ones("output_norm", c["hidden_size"])
    t.matrix("output", c["vocab_size"], c["hidden_size"])
    for index in range(c["num_hidden_layers"]):
        p = f"blk.{index}."
        t.ones(p + "attn_norm", c["hidden_size"])
        t.ones(p + "ffn_norm", c["hidden_size"])
        layer(p, index)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
