"""llama.h, mtmd.h and bridge.h for ctypes: prototypes, structs, and a check of both.

Prototypes and structs are lines copied from the headers; ctypes types are derived from them.
`make abi` lets a C compiler compare them with the real headers, so that they cannot drift apart.
The bridge reports the layout of structs in its build, and `load` refuses a library with a
different layout. Nothing is loaded at import.
"""

import _ctypes
import ctypes
import functools
import os
import re
from collections.abc import Iterator
from ctypes import (
    POINTER,
    c_bool,
    c_char_p,
    c_float,
    c_int8,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

from lmlite.library import RPC_NAME, library_folder
from lmlite.worker.llama import mtmd

PROTOTYPES = """
void llama_backend_init(void);
const char * llama_version(void);
bool llama_supports_gpu_offload(void);
struct llama_model_params llama_model_default_params(void);
struct llama_context_params llama_context_default_params(void);
struct llama_sampler_chain_params llama_sampler_chain_default_params(void);

struct llama_model * llama_model_load_from_file(const char * path_model, struct llama_model_params params);
void llama_model_free(struct llama_model * model);
const struct llama_vocab * llama_model_get_vocab(const struct llama_model * model);
int32_t llama_model_n_ctx_train(const struct llama_model * model);
int32_t llama_model_n_layer(const struct llama_model * model);
int32_t llama_model_n_embd_inp(const struct llama_model * model);
int32_t llama_model_n_embd_out(const struct llama_model * model);
bool llama_model_has_encoder(const struct llama_model * model);
bool llama_model_is_recurrent(const struct llama_model * model);
bool llama_model_is_hybrid(const struct llama_model * model);
uint32_t llama_model_n_cls_out(const struct llama_model * model);
const char * llama_model_chat_template(const struct llama_model * model, const char * name);
int32_t llama_model_n_swa(const struct llama_model * model);

struct llama_context * llama_init_from_model(struct llama_model * model, struct llama_context_params params);
struct llama_adapter_lora * llama_adapter_lora_init(struct llama_model * model, const char * path_lora);
int32_t llama_set_adapters_lora(struct llama_context * ctx, struct llama_adapter_lora ** adapters, size_t n_adapters, float * scales);
void llama_free(struct llama_context * ctx);
uint32_t llama_n_ctx(const struct llama_context * ctx);
uint32_t llama_n_ctx_seq(const struct llama_context * ctx);
uint32_t llama_n_batch(const struct llama_context * ctx);
enum llama_pooling_type llama_pooling_type(const struct llama_context * ctx);
llama_memory_t llama_get_memory(const struct llama_context * ctx);
void llama_set_n_threads(struct llama_context * ctx, int32_t n_threads, int32_t n_threads_batch);

void llama_memory_clear(llama_memory_t mem, bool data);
void llama_memory_seq_cp(llama_memory_t mem, llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1);
bool llama_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
llama_pos llama_memory_seq_pos_min(llama_memory_t mem, llama_seq_id seq_id);
llama_pos llama_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id);

size_t llama_state_seq_get_size(struct llama_context * ctx, llama_seq_id seq_id);
size_t llama_state_seq_get_data(struct llama_context * ctx, uint8_t * dst, size_t size, llama_seq_id seq_id);
size_t llama_state_seq_set_data(struct llama_context * ctx, const uint8_t * src, size_t size, llama_seq_id dest_seq_id);

int32_t llama_decode(struct llama_context * ctx, struct llama_batch batch);
float * llama_get_logits_ith(struct llama_context * ctx, int32_t i);
float * llama_get_embeddings_seq(struct llama_context * ctx, llama_seq_id seq_id);

bool llama_vocab_get_add_eos(const struct llama_vocab * vocab);
int32_t llama_vocab_n_tokens(const struct llama_vocab * vocab);
enum llama_token_attr llama_vocab_get_attr(const struct llama_vocab * vocab, llama_token token);
llama_token llama_vocab_bos(const struct llama_vocab * vocab);
llama_token llama_vocab_eos(const struct llama_vocab * vocab);
llama_token llama_vocab_pad(const struct llama_vocab * vocab);
llama_token llama_vocab_fim_pre(const struct llama_vocab * vocab);
llama_token llama_vocab_fim_suf(const struct llama_vocab * vocab);
llama_token llama_vocab_fim_mid(const struct llama_vocab * vocab);
llama_token llama_vocab_fim_rep(const struct llama_vocab * vocab);
llama_token llama_vocab_fim_sep(const struct llama_vocab * vocab);
llama_token llama_vocab_sep(const struct llama_vocab * vocab);
bool llama_vocab_get_add_sep(const struct llama_vocab * vocab);
bool llama_vocab_get_add_bos(const struct llama_vocab * vocab);
bool llama_vocab_is_eog(const struct llama_vocab * vocab, llama_token token);
int32_t llama_tokenize(const struct llama_vocab * vocab, const char * text, int32_t text_len, llama_token * tokens, int32_t n_tokens_max, bool add_special, bool parse_special);
int32_t llama_token_to_piece(const struct llama_vocab * vocab, llama_token token, char * buf, int32_t length, int32_t lstrip, bool special);

struct llama_sampler * llama_sampler_chain_init(struct llama_sampler_chain_params params);
void llama_sampler_chain_add(struct llama_sampler * chain, struct llama_sampler * smpl);
void llama_sampler_accept(struct llama_sampler * smpl, llama_token token);
void llama_sampler_apply(struct llama_sampler * smpl, llama_token_data_array * cur_p);
void llama_sampler_free(struct llama_sampler * smpl);
struct llama_sampler * llama_sampler_init_greedy(void);
struct llama_sampler * llama_sampler_init_dist(uint32_t seed);
struct llama_sampler * llama_sampler_init_top_k(int32_t k);
struct llama_sampler * llama_sampler_init_top_p(float p, size_t min_keep);
struct llama_sampler * llama_sampler_init_min_p(float p, size_t min_keep);
struct llama_sampler * llama_sampler_init_temp(float t);
struct llama_sampler * llama_sampler_init_temp_ext(float t, float delta, float exponent);
struct llama_sampler * llama_sampler_init_typical(float p, size_t min_keep);
struct llama_sampler * llama_sampler_init_top_n_sigma(float n);
struct llama_sampler * llama_sampler_init_xtc(float p, float t, size_t min_keep, uint32_t seed);
struct llama_sampler * llama_sampler_init_mirostat_v2(uint32_t seed, float tau, float eta);
struct llama_sampler * llama_sampler_init_dry(const struct llama_vocab * vocab, float dry_multiplier, float dry_base, int32_t dry_allowed_length, int32_t dry_penalty_last_n, const char ** seq_breakers, size_t num_breakers);
struct llama_sampler * llama_sampler_init_penalties(int32_t n_vocab, int32_t penalty_last_n, float penalty_repeat, float penalty_freq, float penalty_present);
struct llama_sampler * llama_sampler_init_logit_bias(int32_t n_vocab, int32_t n_logit_bias, const llama_logit_bias * logit_bias);

void lml_free(char * text);
void lml_log_level(int32_t level);
size_t lml_trim(void);
void lml_log(enum ggml_log_level level, const char * text, void * data);
const char * lml_layout(void);
struct lml_chat * lml_chat_init(const struct llama_model * model, const char * override, char ** error);
void lml_chat_free(struct lml_chat * chat);
void lml_bound_thread(size_t max_bytes, float max_s);
const char * lml_chat_source(const struct lml_chat * chat);
char * lml_chat_render(struct lml_chat * chat, const char * request);
struct llama_sampler * lml_grammar_init(const struct llama_vocab * vocab, const char * reply, char ** error);
bool lml_grammar_accept(struct llama_sampler * grammar, const llama_token * tokens, size_t n_tokens);
struct lml_answer * lml_answer_init(const char * reply, char ** error);
void lml_answer_free(struct lml_answer * answer);
bool lml_answer_is_plain(const struct lml_answer * answer);
char * lml_answer_push(struct lml_answer * answer, const char * text, size_t n_bytes);
char * lml_answer_finish(struct lml_answer * answer, bool is_whole);
llama_token lml_sample(struct llama_context * ctx, int32_t index, struct llama_sampler * chain, struct llama_sampler * grammar, int32_t n_best);
struct ggml_threadpool * lml_threads_init(struct llama_context * ctx, int32_t n_threads);
void lml_threads_free(struct ggml_threadpool * threads);
bool lml_are_numbers(const float * logits, int32_t n_vocab);
float lml_logprobs(const float * logits, int32_t n_vocab, llama_token token, int32_t k, llama_token * top_tokens, float * top_logprobs);
char * lml_webp_decode(const char * data, size_t n_bytes, int32_t * width, int32_t * height);

ggml_backend_reg_t ggml_backend_load(const char * path);
void ggml_backend_register(ggml_backend_reg_t reg);
size_t ggml_backend_dev_count(void);
ggml_backend_dev_t ggml_backend_dev_get(size_t index);
enum ggml_backend_dev_type ggml_backend_dev_type(ggml_backend_dev_t device);
size_t llama_max_devices(void);
"""  # noqa: E501
PROTOTYPES += mtmd.PROTOTYPES
RPC_PROTOTYPES = """
ggml_backend_t ggml_backend_rpc_init(const char * endpoint, uint32_t device);
ggml_backend_reg_t ggml_backend_rpc_add_server(const char * endpoint);
void ggml_backend_rpc_start_server(const char * endpoint, const char * cache_dir, size_t n_threads, size_t n_devices, ggml_backend_dev_t * devices);
"""  # noqa: E501

# ---- structs: C names, C order -------------------------------------------------------------

STRUCTS_TEXT = """
struct llama_batch {
    int32_t n_tokens; llama_token * token; float * embd; llama_pos * pos; int32_t * n_seq_id;
    llama_seq_id ** seq_id; int8_t * logits;
};
struct llama_model_params {
    ggml_backend_dev_t * devices;
    const struct llama_model_tensor_buft_override * tensor_buft_overrides; int32_t n_gpu_layers;
    enum llama_split_mode split_mode; enum llama_load_mode load_mode;
    enum llama_lazy_mode lazy_mode; int32_t main_gpu; const float * tensor_split;
    llama_progress_callback progress_callback; void * progress_callback_user_data;
    const struct llama_model_kv_override * kv_overrides; bool vocab_only; bool check_tensors;
    bool use_extra_bufts; bool no_host; bool no_alloc; bool load_mtp;
};
struct llama_context_params {
    uint32_t n_ctx; uint32_t n_batch; uint32_t n_ubatch; uint32_t n_seq_max; uint32_t n_rs_seq;
    uint32_t n_outputs_max; uint32_t n_outputs_max_per_seq; int32_t n_threads;
    int32_t n_threads_batch; enum llama_context_type ctx_type;
    enum llama_rope_scaling_type rope_scaling_type; enum llama_pooling_type pooling_type;
    enum llama_attention_type attention_type; enum llama_flash_attn_type flash_attn_type;
    float rope_freq_base; float rope_freq_scale; float yarn_ext_factor; float yarn_attn_factor;
    float yarn_beta_fast; float yarn_beta_slow; uint32_t yarn_orig_ctx; float defrag_thold;
    ggml_backend_sched_eval_callback cb_eval; void * cb_eval_user_data; enum ggml_type type_k;
    enum ggml_type type_v; ggml_abort_callback abort_callback; void * abort_callback_data;
    bool embeddings; bool offload_kqv; bool no_perf; bool op_offload; bool swa_full;
    bool kv_unified; struct llama_sampler_seq_config * samplers; size_t n_samplers;
    struct llama_context * ctx_other;
};
struct llama_sampler_chain_params { bool no_perf; };
struct llama_logit_bias { llama_token token; float bias; };
struct llama_token_data { llama_token id; float logit; float p; };
struct llama_token_data_array {
    llama_token_data * data; size_t size; int64_t selected; bool sorted;
};
"""

# ---- enum values that Python names ---------------------------------------------------------

TOKEN_ATTR_UNKNOWN, TOKEN_ATTR_CONTROL = 1 << 0, 1 << 3
POOLING_TYPE_UNSPECIFIED, POOLING_TYPE_NONE = -1, 0
POOLING_TYPE_MEAN, POOLING_TYPE_CLS, POOLING_TYPE_LAST, POOLING_TYPE_RANK = 1, 2, 3, 4
BACKEND_DEVICE_TYPE_CPU, *GPU_TYPES = 0, 1, 2
DEFAULT_SEED = 0xFFFFFFFF  # makes a sampler draw a random seed
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ in llama-cparams.h, which is not a public header
LOG_LEVELS = {"debug": 1, "info": 2, "warning": 3, "error": 4}
ROPE_SCALING_TYPES = {None: -1, "none": 0, "linear": 1, "yarn": 2}
FLASH_ATTN_TYPES = {"auto": -1, "off": 0, "on": 1}
# enum ggml_type: the types that llama.cpp accepts for keys and values
CACHE_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2, "q4_1": 3, "iq4_nl": 20,
               "q5_0": 6, "q5_1": 7}  # fmt: skip

_NAMED = ("TOKEN_ATTR_UNKNOWN", "TOKEN_ATTR_CONTROL", "POOLING_TYPE_UNSPECIFIED",
          "POOLING_TYPE_NONE", "POOLING_TYPE_MEAN", "POOLING_TYPE_CLS", "POOLING_TYPE_LAST",
          "POOLING_TYPE_RANK", "DEFAULT_SEED")  # fmt: skip
CONSTANTS = {
    **{f"LLAMA_{name}": globals()[name] for name in _NAMED},
    **{
        f"LLAMA_ROPE_SCALING_TYPE_{(name or 'unspecified').upper()}": value
        for name, value in ROPE_SCALING_TYPES.items()
    },
    "LLAMA_FLASH_ATTN_TYPE_AUTO": FLASH_ATTN_TYPES["auto"],
    "LLAMA_FLASH_ATTN_TYPE_DISABLED": FLASH_ATTN_TYPES["off"],
    "LLAMA_FLASH_ATTN_TYPE_ENABLED": FLASH_ATTN_TYPES["on"],
    "GGML_BACKEND_DEVICE_TYPE_CPU": BACKEND_DEVICE_TYPE_CPU,
    "GGML_BACKEND_DEVICE_TYPE_GPU": GPU_TYPES[0],
    "GGML_BACKEND_DEVICE_TYPE_IGPU": GPU_TYPES[1],
    "GGML_LOG_LEVEL_DEBUG": LOG_LEVELS["debug"],
    "GGML_LOG_LEVEL_ERROR": LOG_LEVELS["error"],
    **{f"GGML_TYPE_{name.upper()}": value for name, value in CACHE_TYPES.items()},
    **mtmd.CONSTANTS,
}

progress_callback = ctypes.CFUNCTYPE(c_bool, c_float, c_void_p)

# ---- C -> ctypes ---------------------------------------------------------------------------

_SCALARS: dict[str, Any] = {
    "void": None, "bool": c_bool, "float": c_float, "int": c_int32, "int8_t": c_int8,
    "int32_t": c_int32, "int64_t": c_int64, "uint32_t": c_uint32, "uint64_t": c_uint64,
    "size_t": c_size_t, "llama_token": c_int32, "llama_pos": c_int32, "llama_seq_id": c_int32,
    "ggml_backend_dev_t": c_void_p,
    "ggml_backend_t": c_void_p,
    "ggml_backend_reg_t": c_void_p,
}  # fmt: skip
_STRUCT = re.compile(r"struct (?P<name>\w+) \{(?P<fields>.*?)\};", re.DOTALL)
_PROTOTYPE = re.compile(r"(?P<result>.+?)(?P<name>\w+)\((?P<arguments>.*)\);")

STRUCTS: dict[str, Any] = {}  # by C name, in C order


def _ctype(declaration: str) -> Any:
    """The ctypes type of a C type such as `const struct llama_vocab *`; None for void."""
    words = re.sub(r"\b(const|struct|unsigned)\b", "", declaration).replace("*", " * ").split()
    base, n_stars = words[0], words.count("*")
    if base == "enum":
        return c_int32
    if base == "llama_memory_t":
        return _handle(base)
    if base.endswith("_callback"):
        return c_void_p
    if n_stars == 0:
        return STRUCTS[base] if base in STRUCTS else _SCALARS[base]
    if base == "char" and "unsigned" not in declaration:
        # `char *` must be freed, so it must stay a pointer; ctypes converts c_char_p to bytes.
        text = c_char_p if "const" in declaration else c_void_p
        return text if n_stars == 1 else POINTER(c_void_p)
    if base == "void":
        return c_void_p
    pointee = _SCALARS.get(base) or STRUCTS.get(base)
    if pointee and n_stars == 2:
        pointee = POINTER(pointee)
    return POINTER(pointee) if pointee else _handle(base)


@functools.cache
def _handle(name: str) -> Any:
    """A separate pointer type for each opaque struct: a wrong handle raises ArgumentError."""
    return type(name, (c_void_p,), {})


def _declare_structs() -> None:
    for match in _STRUCT.finditer(STRUCTS_TEXT + mtmd.STRUCTS_TEXT):
        fields = []
        for field in filter(None, map(str.strip, match["fields"].split(";"))):
            declaration, name = field.rsplit(maxsplit=1)
            ctype = _ctype(declaration)
            # ctypes reads a field of an opaque type as a view into the struct, not as a value.
            is_opaque = ctype.__base__ is c_void_p
            fields.append((name, c_void_p if is_opaque else ctype))
        STRUCTS[match["name"]] = type(match["name"], (ctypes.Structure,), {"_fields_": fields})


_declare_structs()
llama_batch = STRUCTS["llama_batch"]  # does not own its arrays
llama_logit_bias = STRUCTS["llama_logit_bias"]
llama_token_data, llama_token_data_array = (
    STRUCTS["llama_token_data"],
    STRUCTS["llama_token_data_array"],
)
mtmd_input_part = STRUCTS["mtmd_input_part"]


def signatures(prototypes: str = PROTOTYPES) -> Iterator[tuple[str, Any, list[Any]]]:
    """(name, restype, argtypes) of each prototype."""
    for line in prototypes.strip().splitlines():
        match = _PROTOTYPE.fullmatch(line)
        if match is None:
            continue
        arguments = [part.strip() for part in match["arguments"].split(",")]
        types = [_ctype(re.sub(r"\w+$", "", part)) for part in arguments if part != "void"]
        yield match["name"], _ctype(match["result"]), types


def c_check() -> Iterator[str]:
    """Lines of C that compile only if the declarations agree with the headers (`make abi`)."""
    yield '#include "bridge.h"'
    yield '#include "mtmd-helper.h"'
    yield '#include "ggml-rpc.h"'
    yield from (PROTOTYPES + RPC_PROTOTYPES).strip().splitlines()
    for struct in STRUCTS.values():
        c_name = struct.__name__ if struct.__name__ in _TYPEDEFS else f"struct {struct.__name__}"
        yield f'_Static_assert(sizeof({c_name}) == {ctypes.sizeof(struct)}, "{c_name}");'
        for name, *_ in struct._fields_:
            offset = getattr(struct, name).offset
            yield f'_Static_assert(offsetof({c_name}, {name}) == {offset}, "{c_name}.{name}");'
    for name, value in CONSTANTS.items():
        yield f'_Static_assert({name} == {value}, "{name}");'


def layout_lines() -> Iterator[str]:
    """Lines of C++ for lml_layout: one for each struct and field (`make native`)."""
    for struct in STRUCTS.values():
        yield f"SIZE({struct.__name__})"
        yield from (f"FIELD({struct.__name__}, {name})" for name, *_ in struct._fields_)


_TYPEDEFS = {"llama_logit_bias", "llama_token_data", "llama_token_data_array", "llama_batch"}

# ---- loading -------------------------------------------------------------------------------

LIBRARY_NAME = "liblmlite.so"
CPU_LIBRARY = re.compile(r"libggml-cpu(?:-(.+))?\.so")


class LlamaError(Exception):
    """A library call failed."""


class LibraryError(Exception):
    """The native library is missing, incomplete or from a different build. Has one sentence."""


def load(lib_path: str | None = None, log_level: str = "error") -> Any:
    """The library with every prototype declared, and ggml's backends. Raises LibraryError.

    `cpu_variant` of what is returned names ggml's code for this processor; "native" if there is
    only one.
    """
    folder = library_folder(lib_path)
    path = folder / LIBRARY_NAME
    if not path.is_file():
        raise LibraryError(f"no {LIBRARY_NAME} in {folder}: run `make`, or name its folder "
                           "with --lib or LMLITE_LIB")  # fmt: skip
    lib = _declared(path)
    difference = layout_difference(lib.lml_layout().decode())
    if difference:
        raise LibraryError(f"{path} was built from another llama.cpp than this lmlite is made for "
                           f"({difference}): run `make` again")  # fmt: skip
    lib.lml_log_level(LOG_LEVELS[log_level])
    lib.cpu_variant = _load_backends(lib, folder)
    if not lib.ggml_backend_dev_count():
        raise LibraryError(f"no library in {folder} fits this processor: run `make` again")
    return lib


def _load_backends(lib: Any, folder: Path) -> str:
    """Loads ggml's libraries for GPUs and the best for this processor; returns that one's name.

    ggml can search the folder itself, but a process of 32 bits cannot list every folder with the
    functions that ggml uses.
    """
    paths = sorted(folder.glob("libggml-*.so"))
    of_cpus = {path: CPU_LIBRARY.fullmatch(path.name) for path in paths}
    best = max((path for path, match in of_cpus.items() if match), key=_score, default=None)
    for path in paths:
        # With the one for hosts, llama.cpp would take the layers as placed on a GPU.
        if path == best or not (of_cpus[path] or path.name == RPC_NAME):
            lib.ggml_backend_load(os.fsencode(path))
    match = of_cpus[best] if best else None
    return (match and match[1]) or "native"


def _score(path: Path) -> tuple[int, bool]:
    """How well a library suits this processor, as ggml asks it; 0: not at all, or it has no say."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return -1, False
    score = getattr(library, "ggml_backend_score", None)
    found = score() if score else 0
    _ctypes.dlclose(library._handle)
    return found, score is None


def load_rpc(lib: Any, lib_path: str | None) -> Any:
    """ggml's library for hosts, beside `lib`. Raises LibraryError."""
    path = library_folder(lib_path) / RPC_NAME
    if not lib.ggml_backend_load(os.fsencode(path)):
        raise LibraryError(f"{path} cannot be used: run `make` again")
    return _declared(path, RPC_PROTOTYPES)


def _declared(path: Path, prototypes: str = PROTOTYPES) -> Any:
    try:
        # ggml's backends take their functions from this library, so its names are made global.
        lib = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        for name, restype, argtypes in signatures(prototypes):
            function = getattr(lib, name)
            function.restype, function.argtypes = restype, argtypes
    except (OSError, AttributeError) as err:
        raise LibraryError(f"{path} cannot be used: {err}") from None
    return lib


def expected_layout() -> list[str]:
    """The lines that `lml_layout()` returns for a library that matches the structs above."""
    lines = []
    for struct in STRUCTS.values():
        lines.append(f"{struct.__name__} sizeof {ctypes.sizeof(struct)}")
        for name, *_ in struct._fields_:
            field = getattr(struct, name)
            lines.append(f"{struct.__name__}.{name} {field.offset} {field.size}")
    return lines


def layout_difference(layout: str) -> str | None:
    """The first difference between a library's layout and ours, or None."""
    theirs, ours = layout.splitlines(), expected_layout()
    for line, expected in zip(theirs, ours, strict=False):
        if line != expected:
            return f"{line}, expected {expected}"
    return None if len(theirs) == len(ours) else f"{len(theirs)} lines, expected {len(ours)}"


def take_fault(lib: Any, error: ctypes.c_void_p) -> str:
    """The message in `error` after C returned NULL; `error` may be unset."""
    return take_text(lib, error.value) if error.value else "the library gives no reason"


def take_text(lib: Any, pointer: int | None) -> str:
    """Copies a string that C has allocated, and frees it."""
    if not pointer:
        raise MemoryError("the library has no memory for a reply")
    text = ctypes.string_at(pointer).decode("utf-8", "replace")
    lib.lml_free(pointer)
    return text
