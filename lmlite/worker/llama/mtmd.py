"""mtmd.h and mtmd-helper.h as `capi.py` declares them: prototypes and structs, and nothing else.

The library of both, libmtmd, is loaded for models that see, and for no others.
"""

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_int64, c_void_p
from typing import Any

PROTOTYPES = """
struct mtmd_context_params mtmd_context_params_default(void);
mtmd_context * mtmd_init_from_file(const char * mmproj_fname, const struct llama_model * text_model, const struct mtmd_context_params ctx_params);
void mtmd_free(mtmd_context * ctx);
bool mtmd_support_vision(const mtmd_context * ctx);
bool mtmd_decode_use_non_causal(const mtmd_context * ctx, const mtmd_input_chunk * chunk);
void mtmd_helper_log_set(ggml_log_callback log_callback, void * user_data);

struct mtmd_helper_init_opt mtmd_helper_init_opt_default(void);
struct mtmd_helper_bitmap_wrapper mtmd_helper_bitmap_init_from_buf(const mtmd_context * ctx, const unsigned char * buf, size_t len, bool placeholder, struct mtmd_helper_init_opt opt);
mtmd_bitmap * mtmd_bitmap_init(uint32_t nx, uint32_t ny, const unsigned char * data);
uint32_t mtmd_bitmap_get_nx(const mtmd_bitmap * bitmap);
uint32_t mtmd_bitmap_get_ny(const mtmd_bitmap * bitmap);
void mtmd_bitmap_free(mtmd_bitmap * bitmap);

mtmd_input_chunks * mtmd_input_chunks_init(void);
void mtmd_input_chunks_free(mtmd_input_chunks * chunks);
size_t mtmd_input_chunks_size(const mtmd_input_chunks * chunks);
const mtmd_input_chunk * mtmd_input_chunks_get(const mtmd_input_chunks * chunks, size_t idx);
enum mtmd_input_chunk_type mtmd_input_chunk_get_type(const mtmd_input_chunk * chunk);
const llama_token * mtmd_input_chunk_get_tokens_text(const mtmd_input_chunk * chunk, size_t * n_tokens_output);
size_t mtmd_input_chunk_get_n_tokens(const mtmd_input_chunk * chunk);
llama_pos mtmd_input_chunk_get_n_pos(const mtmd_input_chunk * chunk);
int32_t mtmd_tokenize_from_parts(const mtmd_context * ctx, mtmd_input_chunks * output, const mtmd_input_part * const * parts, size_t n_parts, bool add_special);

int32_t mtmd_encode_chunk(mtmd_context * ctx, const mtmd_input_chunk * chunk);
float * mtmd_get_output_embd(mtmd_context * ctx);
int32_t mtmd_helper_decode_image_chunk(mtmd_context * ctx, struct llama_context * lctx, const mtmd_input_chunk * chunk, float * encoded_embd, llama_pos n_past, llama_seq_id seq_id, int32_t n_batch, llama_pos * new_n_past, mtmd_helper_post_decode_callback callback, void * user_data);
"""  # noqa: E501


class mtmd_context_params(ctypes.Structure):
    """How to load a projector."""

    _fields_ = [
        ("use_gpu", c_bool),
        ("device", c_void_p),
        ("print_timings", c_bool),
        ("n_threads", c_int32),
        ("image_marker", c_char_p),
        ("media_marker", c_char_p),
        ("flash_attn_type", c_int32),
        ("warmup", c_bool),
        ("image_min_tokens", c_int32),
        ("image_max_tokens", c_int32),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("batch_max_tokens", c_int32),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
    ]


class mtmd_input_part(ctypes.Structure):
    """A text or a picture of a prompt."""

    _fields_ = [("text", c_void_p), ("bitmap", c_void_p)]


class mtmd_helper_video_init_params(ctypes.Structure):
    """For videos, of which this build knows nothing; a part of the options for pictures."""

    _fields_ = [
        ("fps_target", c_float),
        ("ffmpeg_bin_dir", c_char_p),
        ("timestamp_interval_ms", c_int64),
    ]


class mtmd_helper_init_opt(ctypes.Structure):
    """How to decode a file. Passed by value."""

    _fields_ = [("video_params", mtmd_helper_video_init_params)]


class mtmd_helper_bitmap_wrapper(ctypes.Structure):
    """A decoded file. Returned by value."""

    _fields_ = [("bitmap", c_void_p), ("video_ctx", c_void_p)]


STRUCTS: tuple[Any, ...] = (
    mtmd_context_params,
    mtmd_input_part,
    mtmd_helper_video_init_params,
    mtmd_helper_init_opt,
    mtmd_helper_bitmap_wrapper,
)

INPUT_CHUNK_TYPE_TEXT, INPUT_CHUNK_TYPE_IMAGE = 0, 1
CONSTANTS = {
    "MTMD_INPUT_CHUNK_TYPE_TEXT": INPUT_CHUNK_TYPE_TEXT,
    "MTMD_INPUT_CHUNK_TYPE_IMAGE": INPUT_CHUNK_TYPE_IMAGE,
}
PartList = POINTER(POINTER(mtmd_input_part))
