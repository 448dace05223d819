"""The official inference files of every release, and files that differ from them in one place."""

# Lightricks/LTX-Video at 5260738, configs/ltxv-*.yaml; otherwise only checkpoint names and precisions differ.
SHARED = """
stg_mode: "attention_values" # options: "attention_values", "attention_skip", "residual", "transformer_block"
decode_timestep: 0.05
decode_noise_scale: 0.025
text_encoder_model_name_or_path: "PixArt-alpha/PixArt-XL-2-1024-MS"
precision: "bfloat16"
sampler: "from_checkpoint" # options: "uniform", "linear-quadratic", "from_checkpoint"
prompt_enhancement_words_threshold: 120
prompt_enhancer_image_caption_model_name_or_path: "MiaoshouAI/Florence-2-large-PromptGen-v2.0"
prompt_enhancer_llm_model_name_or_path: "unsloth/Llama-3.2-3B-Instruct"
"""
TWO_PASSES = f"""pipeline_type: multi-scale
checkpoint_path: "ltxv-13b-0.9.8-dev.safetensors"
downscale_factor: 0.6666666
spatial_upscaler_model_path: "ltxv-spatial-upscaler-0.9.8.safetensors"
{SHARED}stochastic_sampling: false
"""
DEV_13B = f"""{TWO_PASSES}
first_pass:
  guidance_scale: [1, 1, 6, 8, 6, 1, 1]
  stg_scale: [0, 0, 4, 4, 4, 2, 1]
  rescaling_scale: [1, 1, 0.5, 0.5, 1, 1, 1]
  guidance_timesteps: [1.0, 0.996,  0.9933, 0.9850, 0.9767, 0.9008, 0.6180]
  skip_block_list: [[], [11, 25, 35, 39], [22, 35, 39], [28], [28], [28], [28]]
  num_inference_steps: 30
  skip_final_inference_steps: 3
  cfg_star_rescale: true

second_pass:
  guidance_scale: [1]
  stg_scale: [1]
  rescaling_scale: [1]
  guidance_timesteps: [1.0]
  skip_block_list: [27]
  num_inference_steps: 30
  skip_initial_inference_steps: 17
  cfg_star_rescale: true
"""
DISTILLED_2B = f"""{TWO_PASSES}
first_pass:
  timesteps: [1.0000, 0.9937, 0.9875, 0.9812, 0.9750, 0.9094, 0.7250]
  guidance_scale: 1
  stg_scale: 0
  rescaling_scale: 1
  skip_block_list: [42]

second_pass:
  timesteps: [0.9094, 0.7250, 0.4219]
  guidance_scale: 1
  stg_scale: 0
  rescaling_scale: 1
  skip_block_list: [42]
"""
DISTILLED_13B = f"{DISTILLED_2B}  tone_map_compression_ratio: 0.6\n"
BASE = f"""pipeline_type: base
checkpoint_path: "ltx-video-2b-v0.9.5.safetensors"
guidance_scale: 3
stg_scale: 1
rescaling_scale: 0.7
skip_block_list: [19]
num_inference_steps: 40
{SHARED}stochastic_sampling: false"""
DISTILLED_SINGLE = f"""pipeline_type: base
checkpoint_path: "ltxv-2b-0.9.6-distilled-04-25.safetensors"
guidance_scale: 1
stg_scale: 0
rescaling_scale: 1
num_inference_steps: 8
{SHARED}stochastic_sampling: true"""
OFFICIAL = {
    **dict.fromkeys(("0.9.0", "0.9.1", "0.9.5", "0.9.6-dev"), BASE),
    "0.9.6-distilled": DISTILLED_SINGLE,
    **dict.fromkeys(("0.9.7-dev", "0.9.8-13b-dev"), DEV_13B),
    **dict.fromkeys(("0.9.7-distilled", "0.9.8-2b-distilled"), DISTILLED_2B),
    "0.9.8-13b-distilled": DISTILLED_13B,
}


def changed(text: str, old: str, new: str) -> str:
    """Returns the text with the first `old` in it replaced by `new`."""
    assert old in text
    return text.replace(old, new, 1)
