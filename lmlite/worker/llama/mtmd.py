"""The prototypes and structs of mtmd.h and mtmd-helper.h, for `capi.py`."""

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

STRUCTS_TEXT = """
struct mtmd_context_params {
    bool use_gpu; ggml_backend_dev_t device; bool print_timings; int n_threads;
    const char * image_marker; const char * media_marker;
    enum llama_flash_attn_type flash_attn_type; bool warmup; int image_min_tokens;
    int image_max_tokens; ggml_backend_sched_eval_callback cb_eval; void * cb_eval_user_data;
    int32_t batch_max_tokens; mtmd_progress_callback progress_callback;
    void * progress_callback_user_data;
};
struct mtmd_input_part { const struct mtmd_input_text * text; const struct mtmd_bitmap * bitmap; };
struct mtmd_helper_video_init_params {
    float fps_target; const char * ffmpeg_bin_dir; int64_t timestamp_interval_ms;
};
struct mtmd_helper_init_opt { struct mtmd_helper_video_init_params video_params; };
struct mtmd_helper_bitmap_wrapper { mtmd_bitmap * bitmap; mtmd_helper_video * video_ctx; };
"""

INPUT_CHUNK_TYPE_TEXT, INPUT_CHUNK_TYPE_IMAGE = 0, 1
CONSTANTS = {
    "MTMD_INPUT_CHUNK_TYPE_TEXT": INPUT_CHUNK_TYPE_TEXT,
    "MTMD_INPUT_CHUNK_TYPE_IMAGE": INPUT_CHUNK_TYPE_IMAGE,
}
