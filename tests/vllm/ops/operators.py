"""Every operator of the extension: the test of this folder that runs it, or why there is none.

A value is a test (``file::function``) or, behind ``none:``, a reason.
"""

from __future__ import annotations

ABSENT = "none: declared for newer GPUs, not compiled"
REFUSES = "none: for newer GPUs; without CUTLASS it raises"
SEVERAL = "none: wants several GPUs"
ATTENTION, CACHE, LAYERS = "test_attention.py::", "test_cache.py::", "test_layers.py::"
QUANTIZED, MOE, REST = "test_quantized.py::", "test_moe.py::", "test_rest.py::"

COVERED = {
    "_C::apply_repetition_penalties_": REST + "test_apply_repetition_penalties",
    "_C::awq_dequantize": QUANTIZED + "test_awq_dequantize",
    "_C::awq_gemm": REST + "test_refusals_name_the_capability",
    "_C::convert_vertical_slash_indexes": ATTENTION + "test_vertical_slash_indexes",
    "_C::convert_vertical_slash_indexes_mergehead": ATTENTION + "test_vertical_slash_indexes",
    "_C::cutlass_group_gemm_supported": REST + "test_what_newer_gpus_have_is_said_to_be_absent",
    "_C::cutlass_scaled_mm_supports_block_fp8": REST
    + "test_what_newer_gpus_have_is_said_to_be_absent",
    "_C::cutlass_scaled_mm_supports_fp4": REST + "test_what_newer_gpus_have_is_said_to_be_absent",
    "_C::cutlass_scaled_mm_supports_fp8": REST + "test_what_newer_gpus_have_is_said_to_be_absent",
    "_C::cutlass_sparse_scaled_mm_supported": REST
    + "test_what_newer_gpus_have_is_said_to_be_absent",
    "_C::dynamic_per_token_scaled_fp8_quant": QUANTIZED + "test_dynamic_per_token_scaled_fp8_quant",
    "_C::dynamic_scaled_fp8_quant": QUANTIZED + "test_dynamic_scaled_fp8_quant",
    "_C::dynamic_scaled_int8_quant": QUANTIZED + "test_dynamic_scaled_int8_quant",
    "_C::fatrelu_and_mul": LAYERS + "test_fatrelu_and_mul",
    "_C::fused_add_rms_norm": LAYERS + "test_fused_add_rms_norm",
    "_C::fused_add_rms_norm_static_fp8_quant": LAYERS + "test_rms_norm_static_fp8_quant",
    "_C::fused_qk_norm_rope": LAYERS + "test_fused_qk_norm_rope",
    "_C::gelu_and_mul": LAYERS + "test_activation_and_mul",
    "_C::gelu_fast": LAYERS + "test_activation",
    "_C::gelu_new": LAYERS + "test_activation",
    "_C::gelu_quick": LAYERS + "test_activation",
    "_C::gelu_tanh_and_mul": LAYERS + "test_activation_and_mul",
    "_C::get_cuda_view_from_cpu_tensor": REST + "test_view_of_pinned_memory",
    "_C::ggml_dequantize": QUANTIZED + "test_ggml_dequantize",
    "_C::ggml_moe_a8": QUANTIZED + "test_ggml_moe",
    "_C::ggml_moe_a8_vec": QUANTIZED + "test_ggml_moe_vec",
    "_C::ggml_moe_get_block_size": QUANTIZED + "test_ggml_moe",
    "_C::ggml_mul_mat_a8": QUANTIZED + "test_ggml_mul_mat",
    "_C::ggml_mul_mat_vec_a8": QUANTIZED + "test_ggml_mul_mat_vec",
    "_C::gptq_gemm": QUANTIZED + "test_gptq_gemm",
    "_C::gptq_shuffle": QUANTIZED + "test_gptq_gemm",
    "_C::hadacore_transform": REST + "test_what_is_declared_alone_is_not_called",
    "_C::merge_attn_states": ATTENTION + "test_merge_attn_states",
    "_C::mul_and_silu": LAYERS + "test_activation_and_mul",
    "_C::paged_attention_v1": ATTENTION + "test_head_sizes",
    "_C::paged_attention_v2": ATTENTION + "test_head_sizes",
    "_C::per_token_group_fp8_quant": QUANTIZED + "test_per_token_group_quant",
    "_C::per_token_group_fp8_quant_packed": QUANTIZED + "test_per_token_group_fp8_quant_packed",
    "_C::per_token_group_quant_int8": QUANTIZED + "test_per_token_group_quant",
    "_C::permute_cols": REST + "test_permute_cols",
    "_C::persistent_masked_m_silu_mul_quant": REST + "test_refusals_name_the_capability",
    "_C::rms_norm": LAYERS + "test_rms_norm",
    "_C::rms_norm_dynamic_per_token_quant": LAYERS + "test_rms_norm_dynamic_per_token_quant",
    "_C::rms_norm_per_block_quant": LAYERS + "test_rms_norm_per_block_quant",
    "_C::rms_norm_static_fp8_quant": LAYERS + "test_rms_norm_static_fp8_quant",
    "_C::rotary_embedding": LAYERS + "test_rotary_embedding",
    "_C::selective_scan_fwd": ATTENTION + "test_selective_scan",
    "_C::silu_and_mul": LAYERS + "test_activation_and_mul",
    "_C::silu_and_mul_quant": LAYERS + "test_silu_and_mul_quant",
    "_C::static_scaled_fp8_quant": QUANTIZED + "test_static_scaled_fp8_quant",
    "_C::static_scaled_int8_quant": QUANTIZED + "test_static_scaled_int8_quant",
    "_C::swigluoai_and_mul": LAYERS + "test_swigluoai_and_mul",
    "_C::top_k_per_row_decode": REST + "test_top_k_per_row_decode",
    "_C::top_k_per_row_prefill": REST + "test_top_k_per_row_prefill",
    "_C::weak_ref_tensor": REST + "test_weak_ref_tensor",
    "_C_cache_ops::concat_and_cache_mla": CACHE + "test_concat_and_cache_mla",
    "_C_cache_ops::concat_and_cache_mla_rope_fused": CACHE + "test_concat_and_cache_mla_rope_fused",
    "_C_cache_ops::convert_fp8": CACHE + "test_convert_fp8",
    "_C_cache_ops::cp_gather_and_upconvert_fp8_kv_cache": CACHE + "test_concat_and_cache_ds_mla",
    "_C_cache_ops::cp_gather_cache": CACHE + "test_cp_gather_cache",
    "_C_cache_ops::cp_gather_indexer_k_quant_cache": CACHE + "test_indexer_cache",
    "_C_cache_ops::gather_and_maybe_dequant_cache": CACHE + "test_gather_and_maybe_dequant_cache",
    "_C_cache_ops::indexer_k_quant_and_cache": CACHE + "test_indexer_cache",
    "_C_cache_ops::reshape_and_cache": CACHE + "test_reshape_and_cache",
    "_C_cache_ops::reshape_and_cache_flash": CACHE + "test_reshape_and_cache_flash",
    "_C_cache_ops::swap_blocks": CACHE + "test_swap_blocks",
    "_C_cuda_utils::get_device_attribute": "none: keeps the first answer, the next operator's",
    "_C_cuda_utils::get_max_shared_memory_per_block_device_attribute": REST
    + "test_device_attributes",
    "_moe_C::batched_moe_align_block_size": MOE + "test_batched_moe_align_block_size",
    "_moe_C::grouped_topk": MOE + "test_grouped_topk",
    "_moe_C::moe_align_block_size": MOE + "test_moe_align_block_size",
    "_moe_C::moe_lora_align_block_size": MOE + "test_moe_lora_align_block_size",
    "_moe_C::moe_permute_unpermute_supported": MOE + "test_moe_permute_is_not_there",
    "_moe_C::moe_sum": MOE + "test_moe_sum",
    "_moe_C::moe_wna16_gemm": MOE + "test_moe_wna16_gemm",
    "_moe_C::shuffle_rows": MOE + "test_moe_permute_is_not_there",
    "_moe_C::topk_softmax": MOE + "test_topk_softmax",
    **{
        f"_C::{name}": ABSENT
        for name in (
            *("allspark_w8a16_gemm", "awq_marlin_repack", "cutlass_encode_and_reorder_int4b"),
            *("cutlass_encode_and_reorder_int4b_grouped", "cutlass_fp4_group_mm"),
            *("cutlass_pack_scale_fp8", "cutlass_w4a8_mm", "cutlass_w4a8_moe_mm"),
            *("gptq_marlin_24_gemm", "gptq_marlin_gemm", "gptq_marlin_repack", "machete_mm"),
            *("machete_prepack_B", "machete_supported_schedules", "marlin_int4_fp8_preprocess"),
            *("rearrange_kn_weight_as_n32k16_order", "sm100_cutlass_mla_decode"),
            "sm100_cutlass_mla_get_workspace_size",
        )
    },
    **{
        f"_C::{name}": REFUSES
        for name in (
            *("cutlass_moe_mm", "cutlass_scaled_fp4_mm", "cutlass_scaled_mm"),
            *("cutlass_scaled_mm_azp", "cutlass_scaled_sparse_mm", "cutlass_sparse_compress"),
            *("get_cutlass_moe_mm_data", "get_cutlass_moe_mm_problem_sizes"),
            "get_cutlass_moe_mm_problem_sizes_from_expert_offsets",
            *("get_cutlass_pplx_moe_mm_data", "scaled_fp4_experts_quant", "scaled_fp4_quant"),
            *("silu_and_mul_nvfp4_quant", "silu_and_mul_scaled_fp4_experts_quant"),
        )
    },
    "_moe_C::marlin_gemm_moe": ABSENT,
    "_moe_C::moe_permute": REFUSES,
    "_moe_C::moe_unpermute": REFUSES,
    "_moe_C::moe_wna16_marlin_gemm": ABSENT,
    **{
        f"_C_custom_ar::{name}": SEVERAL
        for name in (
            *("all_reduce", "allocate_shared_buffer_and_handle", "dispose", "free_shared_buffer"),
            *("get_graph_buffer_ipc_meta", "init_custom_ar", "meta_size", "open_mem_handle"),
            *("register_buffer", "register_graph_buffers"),
        )
    },
}
