# Writes a deepseek2 GGUF with random float32 weights in the shape of models/configs/deepseek-678m.json, so that
# llama.cpp and its forks can be measured beside Duet: bench/peers.sh runs it. Needs the packages gguf and numpy.
#   python3 tools/make_random_gguf.py OUT.gguf
import sys, numpy as np, gguf
H,L,NH,KVR,NOPE,ROPE,VD,E,TOPK,MI,SH,V,F=1024,8,16,512,128,64,128,32,6,704,2,32000,5504
out=sys.argv[1]
w=gguf.GGUFWriter(out,'deepseek2')
w.add_name('rand-dsv2-mini'); w.add_context_length(8192); w.add_embedding_length(H); w.add_block_count(L); w.add_feed_forward_length(F)
w.add_head_count(NH); w.add_head_count_kv(NH); w.add_rope_freq_base(10000.0); w.add_layer_norm_rms_eps(1e-6); w.add_expert_used_count(TOPK); w.add_file_type(0)
w.add_leading_dense_block_count(1); w.add_vocab_size(V); w.add_kv_lora_rank(KVR); w.add_key_length(NOPE+ROPE); w.add_value_length(VD)
w.add_expert_feed_forward_length(MI); w.add_expert_count(E); w.add_expert_shared_count(SH); w.add_expert_weights_scale(1.0); w.add_rope_dimension_count(ROPE)
w.add_string('tokenizer.ggml.model','llama')
toks=[b'<unk>',b'<s>',b'</s>']+[('<0x%02X>'%i).encode() for i in range(256)]; types=[2,3,3]+[6]*256
i=0
while len(toks)<V: toks.append(('\u2581t%d'%i).encode()); types.append(1); i+=1
w.add_token_list(toks); w.add_token_scores([0.0]*3+[0.0]*256+[-float(j) for j in range(V-259)]); w.add_token_types(types)
w.add_bos_token_id(1); w.add_eos_token_id(2); w.add_unk_token_id(0); w.add_add_bos_token(True)
rng=np.random.default_rng(1)
def t(name,*shape,std=0.02):
    w.add_tensor(name,(rng.standard_normal(shape,dtype=np.float32)*std))
def one(name,n): w.add_tensor(name,np.ones(n,dtype=np.float32))
t('token_embd.weight',V,H); one('output_norm.weight',H); t('output.weight',V,H)
for l in range(L):
    p=f'blk.{l}.'
    one(p+'attn_norm.weight',H); t(p+'attn_q.weight',NH*(NOPE+ROPE),H); t(p+'attn_kv_a_mqa.weight',KVR+ROPE,H); one(p+'attn_kv_a_norm.weight',KVR)
    t(p+'attn_kv_b.weight',NH*(NOPE+VD),KVR); t(p+'attn_output.weight',H,NH*VD); one(p+'ffn_norm.weight',H)
    if l<1: t(p+'ffn_gate.weight',F,H);t(p+'ffn_up.weight',F,H);t(p+'ffn_down.weight',H,F)
    else:
        t(p+'ffn_gate_inp.weight',E,H); t(p+'ffn_gate_exps.weight',E,MI,H);t(p+'ffn_up_exps.weight',E,MI,H);t(p+'ffn_down_exps.weight',E,H,MI)
        t(p+'ffn_gate_shexp.weight',MI*SH,H);t(p+'ffn_up_shexp.weight',MI*SH,H);t(p+'ffn_down_shexp.weight',H,MI*SH)
w.write_header_to_file();w.write_kv_data_to_file();w.write_tensors_to_file();w.close()
