/* SPDX-License-Identifier: Apache-2.0 */
/* Names and shapes of parameters for unit_policy. */
#ifndef EQ_REAL_NAMES_H
#define EQ_REAL_NAMES_H

#include <stdint.h>

struct real_name {
	const char *name;
	uint64_t dims[5];       /* up to the first 0 */
};

static unsigned count_dims(const struct real_name *n)
{
	unsigned k = 0;

	while (k < 5 && n->dims[k])
		k++;
	return k;
}

/* Parameters of released models, as their safetensors files name them. */
static const struct real_name quantised[] = {
	/* Llama, Mistral, Qwen2 and 3, Gemma, OLMo */
	{ "model.layers.12.self_attn.q_proj.weight", { 4096, 4096 } },
	{ "model.layers.0.self_attn.k_proj.weight", { 1024, 4096 } },
	{ "model.layers.0.self_attn.o_proj.weight", { 4096, 4096 } },
	{ "model.layers.31.mlp.gate_proj.weight", { 14336, 4096 } },
	{ "model.layers.31.mlp.up_proj.weight", { 14336, 4096 } },
	{ "model.layers.31.mlp.down_proj.weight", { 4096, 14336 } },
	{ "model.language_model.layers.3.self_attn.v_proj.weight", { 1024, 2560 } },
	{ "language_model.model.layers.3.mlp.up_proj.weight", { 10240, 2560 } },
	{ "layers.0.attention.wq.weight", { 4096, 4096 } },
	{ "layers.0.feed_forward.w2.weight", { 4096, 14336 } },
	/* Phi-3, GLM, InternLM2, ChatGLM */
	{ "model.layers.0.self_attn.qkv_proj.weight", { 9216, 3072 } },
	{ "model.layers.0.mlp.gate_up_proj.weight", { 16384, 3072 } },
	{ "model.layers.0.attention.wqkv.weight", { 6144, 4096 } },
	{ "transformer.encoder.layers.0.mlp.dense_h_to_4h.weight", { 27392, 4096 } },
	/* Mixtral, Qwen MoE, DeepSeek, one tensor an expert */
	{ "model.layers.0.block_sparse_moe.experts.7.w1.weight", { 14336, 4096 } },
	{ "model.layers.0.mlp.experts.63.gate_proj.weight", { 1408, 2048 } },
	{ "model.layers.0.mlp.shared_expert.up_proj.weight", { 5632, 2048 } },
	{ "model.layers.0.mlp.shared_experts.down_proj.weight", { 2048, 2816 } },
	{ "model.layers.0.self_attn.q_a_proj.weight", { 1536, 7168 } },
	{ "model.layers.0.self_attn.kv_a_proj_with_mqa.weight", { 576, 7168 } },
	{ "model.layers.0.self_attn.kv_b_proj.weight", { 32768, 512 } },
	{ "model.layers.61.eh_proj.weight", { 7168, 14336 } },
	/* all experts in one tensor: gpt-oss, Llama 4, Qwen3-VL, Granite, DBRX */
	{ "model.layers.0.mlp.experts.gate_up_proj", { 32, 2880, 5760 } },
	{ "model.layers.0.mlp.experts.down_proj", { 32, 2880, 2880 } },
	{ "language_model.model.layers.0.feed_forward.experts.gate_up_proj", { 16, 5120, 16384 } },
	{ "model.language_model.layers.0.mlp.experts.down_proj", { 128, 768, 2048 } },
	{ "model.layers.0.block_sparse_moe.input_linear.weight", { 32, 1024, 1024 } },
	{ "transformer.blocks.0.ffn.experts.mlp.w1", { 172032, 6144 } },
	{ "transformer.blocks.0.ffn.experts.mlp.v1", { 172032, 6144 } },
	/* BERT, MiniLM, RoBERTa, DistilBERT, ModernBERT, nomic */
	{ "encoder.layer.0.attention.self.query.weight", { 384, 384 } },
	{ "encoder.layer.5.attention.output.dense.weight", { 384, 384 } },
	{ "bert.encoder.layer.0.intermediate.dense.weight", { 3072, 768 } },
	{ "roberta.encoder.layer.0.output.dense.weight", { 768, 3072 } },
	{ "distilbert.transformer.layer.0.ffn.lin1.weight", { 3072, 768 } },
	{ "layers.0.attn.Wqkv.weight", { 2304, 768 } },
	{ "0.auto_model.encoder.layer.0.attention.self.key.weight", { 384, 384 } },
	/* T5 */
	{ "encoder.block.0.layer.0.SelfAttention.q.weight", { 512, 512 } },
	{ "decoder.block.0.layer.1.EncDecAttention.o.weight", { 512, 512 } },
	{ "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", { 1024, 512 } },
	/* ViT, DINOv2, CLIP, SigLIP, Qwen-VL's tower, timm */
	{ "vit.encoder.layer.0.attention.attention.query.weight", { 768, 768 } },
	{ "vision_model.encoder.layers.0.mlp.fc1.weight", { 3072, 768 } },
	{ "model.vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.weight", { 1152, 1152 } },
	{ "model.visual.blocks.0.attn.qkv.weight", { 3456, 1152 } },
	{ "blocks.0.mlp.fc2.weight", { 768, 3072 } },
	{ "visual.transformer.resblocks.0.attn.in_proj_weight", { 2304, 768 } },
	/* Whisper, wav2vec 2 */
	{ "model.encoder.layers.0.self_attn.k_proj.weight", { 512, 512 } },
	{ "model.decoder.layers.0.encoder_attn.out_proj.weight", { 512, 512 } },
	{ "model.decoder.layers.0.fc1.weight", { 2048, 512 } },
	{ "wav2vec2.encoder.layers.0.feed_forward.intermediate_dense.weight", { 3072, 768 } },
	/* GPT-2, GPT-NeoX, Falcon, BLOOM, MPT, OPT */
	{ "h.3.mlp.c_fc.weight", { 768, 3072 } },
	{ "transformer.h.3.attn.c_attn.weight", { 768, 2304 } },
	{ "gpt_neox.layers.0.attention.query_key_value.weight", { 1536, 512 } },
	{ "transformer.h.0.self_attention.query_key_value.weight", { 4672, 4544 } },
	{ "transformer.blocks.0.ffn.up_proj.weight", { 16384, 4096 } },
	{ "model.decoder.layers.0.fc2.weight", { 768, 3072 } },
	/* Mamba, Qwen3-Next, Jamba, RWKV */
	{ "backbone.layers.0.mixer.in_proj.weight", { 3072, 768 } },
	{ "backbone.layers.0.mixer.x_proj.weight", { 80, 1536 } },
	{ "backbone.layers.0.mixer.out_proj.weight", { 768, 1536 } },
	{ "model.layers.0.linear_attn.in_proj_qkvz.weight", { 12288, 2048 } },
	{ "model.layers.0.linear_attn.out_proj.weight", { 2048, 4096 } },
	{ "model.layers.0.mamba.in_proj.weight", { 16384, 4096 } },
	{ "model.layers.0.conv.in_proj.weight", { 6144, 2048 } },
	{ "rwkv.blocks.0.attention.key.weight", { 768, 768 } },
	/* Flux, Stable Diffusion */
	{ "transformer_blocks.0.attn.to_q.weight", { 3072, 3072 } },
	{ "single_transformer_blocks.37.proj_mlp.weight", { 12288, 3072 } },
	{ "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight", { 320, 320 } },
	/* torch.nn.TransformerDecoder, and a plain module of that name */
	{ "decoder.layers.0.multihead_attn.out_proj.weight", { 256, 256 } },
	{ "encoder.layers.0.multi_head_attention.query.weight", { 256, 256 } },
	{ "encoder.layers.0.positionwise_feedforward.w_1.weight", { 1024, 256 } },
};

static const struct real_name kept[] = {
	/* embeddings and heads */
	{ "model.embed_tokens.weight", { 128256, 4096 } },
	{ "lm_head.weight", { 128256, 4096 } },
	{ "output.weight", { 128256, 4096 } },
	{ "shared.weight", { 32128, 512 } },
	{ "transformer.wte.weight", { 50257, 768 } },
	{ "wpe.weight", { 1024, 768 } },
	{ "embeddings.word_embeddings.weight", { 30522, 384 } },
	{ "bert.embeddings.position_embeddings.weight", { 512, 768 } },
	{ "model.encoder.embed_positions.weight", { 1500, 512 } },
	{ "model.layers.61.embed_tokens.weight", { 129280, 7168 } },
	{ "model.layers.61.shared_head.head.weight", { 129280, 7168 } },
	{ "model.decoder.embed_tokens.0.weight", { 2049, 1024 } },
	{ "lm_heads.0.weight", { 2048, 1024 } },
	{ "medusa_heads.0.0.linear.weight", { 4096, 4096 } },
	{ "0.auto_model.embeddings.word_embeddings.weight", { 30522, 384 } },
	/* outside the blocks */
	{ "pooler.dense.weight", { 384, 384 } },
	{ "0.auto_model.pooler.dense.weight", { 384, 384 } },
	{ "2.linear.weight", { 768, 384 } },
	{ "classifier.weight", { 1000, 768 } },
	{ "cls.predictions.transform.dense.weight", { 768, 768 } },
	{ "multi_modal_projector.linear_1.weight", { 4096, 1024 } },
	{ "model.mm_projector.2.weight", { 4096, 4096 } },
	{ "model.visual.merger.mlp.0.weight", { 5120, 5120 } },
	{ "model.visual.deepstack_merger_list.0.linear_fc1.weight", { 4608, 4608 } },
	{ "time_text_embed.timestep_embedder.linear_1.weight", { 3072, 256 } },
	/* norms, biases, vectors */
	{ "model.layers.0.input_layernorm.weight", { 4096 } },
	{ "model.layers.0.self_attn.q_norm.weight", { 128 } },
	{ "model.layers.0.self_attn.q_proj.bias", { 4096 } },
	{ "h.0.ln_1.weight", { 768 } },
	{ "model.layers.0.self_attn.sinks", { 64 } },
	{ "transformer_blocks.0.norm1.linear.weight", { 18432, 3072 } },
	{ "model.layers.0.mlp.experts.gate_up_proj_bias", { 32, 5760 } },
	{ "model.layers.0.mlp.experts.down_proj_bias", { 32, 2880 } },
	{ "model.layers.3.mlp.gate.e_score_correction_bias", { 256 } },
	/* routers */
	{ "model.layers.0.mlp.gate.weight", { 256, 7168 } },
	{ "model.layers.0.block_sparse_moe.gate.weight", { 64, 4096 } },
	{ "model.layers.0.mlp.router.weight", { 32, 2880 } },
	{ "model.layers.0.block_sparse_moe.router.layer.weight", { 32, 1024 } },
	{ "transformer.blocks.0.ffn.router.layer.weight", { 64, 6144 } },
	{ "language_model.model.layers.0.feed_forward.router.weight", { 128, 5120 } },
	{ "encoder.block.1.layer.1.mlp.router.classifier.weight", { 64, 768 } },
	{ "model.layers.0.mlp.shared_expert_gate.weight", { 1, 2048 } },
	{ "model.layers.0.mlp.gate.wg.weight", { 64, 4096 } },
	/* positions */
	{ "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", { 32, 64 } },
	{ "swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table", { 169, 48 } },
	{ "deberta.encoder.rel_embeddings.weight", { 512, 768 } },
	{ "model.layers.0.self_attn.rotary_emb.inv_freq", { 64 } },
	{ "wav2vec2.encoder.pos_conv_embed.conv.weight_v", { 768, 48, 128 } },
	/* state-space and delta-rule layers */
	{ "backbone.layers.0.mixer.conv1d.weight", { 1536, 1, 4 } },
	{ "backbone.layers.0.mixer.A_log", { 1536, 32 } },
	{ "backbone.layers.0.mixer.dt_proj.weight", { 1536, 48 } },
	{ "model.layers.0.linear_attn.in_proj_ba.weight", { 64, 2048 } },
	{ "model.layers.0.linear_attn.in_proj_a.weight", { 48, 5120 } },
	{ "model.layers.0.linear_attn.conv1d.weight", { 8192, 1, 4 } },
	/* convolutions and other shapes */
	{ "model.encoder.conv1.weight", { 512, 80, 3 } },
	{ "wav2vec2.feature_extractor.conv_layers.1.conv.weight", { 512, 512, 32 } },
	{ "model.visual.patch_embed.proj.weight", { 1152, 3, 2, 16, 16 } },
	{ "layer1.0.conv1.weight", { 64, 64, 3, 3 } },
	{ "model.layers.0.conv.conv.weight", { 2048, 1, 3 } },
	{ "model.layers.0.altup.prediction_coefs.weight", { 16, 4 } },
	{ "model.layers.0.self_attn.q_proj.weight", { 31, 4096 } },
	{ "model.layers.0.self_attn.q_proj.weight", { 4096, 31 } },
	{ "model.layers.0.mlp.experts.gate_up_proj", { 32, 31, 64 } },
	/* LoRA */
	{ "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", { 64, 4096 } },
	{ "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight", { 4096, 64 } },
	{ "model.layers.0.attn.w_lora.lora.0.weight", { 64, 768 } },
	{ "blocks.0.att.w1", { 768, 64 } }, /* RWKV-7's */
	/* scales and codes of checkpoints that are quantised already */
	{ "model.layers.0.self_attn.q_proj.weight_scale_inv", { 56, 56 } },
	{ "model.layers.0.self_attn.q_proj.scales", { 32, 4096 } },
};

#endif
