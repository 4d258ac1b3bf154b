#include "chat.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "answer.h"
#include "bridge.h"
#include "json.h"

struct lml_chat {
    common_chat_templates_ptr templates;
    std::string               source;
};

struct lml_answer {
    growing_answer growing;
};

namespace {

// malloc, not new: the caller frees through lml_free whatever allocator C++ uses.
char * owned(const std::string & text) {
    char * copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (copy != nullptr) {
        std::memcpy(copy, text.c_str(), text.size() + 1);
    }
    return copy;
}

char * error_json(const std::string & what) {
    try {
        common_json body = common_json::object();
        body["error"]    = what;
        return owned(body.dump_safe());  // it may quote half a letter
    } catch (const std::exception &) {
        return owned("{\"error\": \"the failure cannot be described\"}");
    }
}

common_json list(const std::vector<std::string> & texts) {
    common_json array = common_json::array();
    for (const std::string & text : texts) {
        array.push_back(text);
    }
    return array;
}

// ---- request -> prompt, grammar and parser ---------------------------------------------------

common_chat_templates_inputs inputs_of(const lml_chat & chat, const common_json & request) {
    common_chat_templates_inputs inputs;
    inputs.messages = common_chat_msgs_parse_oaicompat(request.at("messages"));
    // Calls cannot be continued: there, the model goes on with a turn of its own.
    if (!inputs.messages.empty() && inputs.messages.back().role == "assistant" &&
        inputs.messages.back().tool_calls.empty()) {
        inputs.continue_final_message = COMMON_CHAT_CONTINUATION_AUTO;
    }
    if (request.contains("tools")) {
        inputs.tools       = common_chat_tools_parse_oaicompat(request.at("tools"));
        inputs.tool_choice = common_chat_tool_choice_parse_oaicompat(request.at("tool_choice").get<std::string>());
        const auto caps    = common_chat_templates_get_caps(chat.templates.get());
        inputs.parallel_tool_calls = request.value("parallel_tool_calls", caps.at("supports_parallel_tool_calls"));
        if (request.contains("schemas")) {
            // Calls are held to these; the template still reads the tools as they are.
            inputs.chat_template_kwargs["tools"] = common_chat_tools_to_json_oaicompat(inputs.tools).dump();
            for (size_t i = 0; i < inputs.tools.size(); i++) {
                inputs.tools[i].parameters = request.at("schemas").at(i).dump();
            }
        }
    }
    if (request.contains("json_schema")) {
        inputs.json_schema = request.at("json_schema").dump();
    }
    inputs.grammar         = request.value("grammar", "");
    inputs.enable_thinking = request.value("enable_thinking", true);
    const bool reasoning   = request.value("reasoning", true);
    inputs.reasoning_format = reasoning ? COMMON_REASONING_FORMAT_DEEPSEEK : COMMON_REASONING_FORMAT_NONE;
    if (request.contains("kwargs")) {
        for (const auto & item : request.at("kwargs").items()) {
            inputs.chat_template_kwargs[item.key()] = item.value().dump();
        }
    }
    return inputs;
}

std::string render(const lml_chat & chat, const std::string & request) {
    const common_chat_templates_inputs inputs = inputs_of(chat, common_json::parse(request));
    const common_chat_params params = common_chat_templates_apply(chat.templates.get(), inputs);

    common_json triggers = common_json::array();
    for (const common_grammar_trigger & trigger : params.grammar_triggers) {
        common_json each = common_json::object();
        each["type"]  = static_cast<int>(trigger.type);
        each["value"] = trigger.value;
        each["token"] = trigger.token;
        triggers.push_back(each);
    }
    common_json reply = common_json::object();
    reply["prompt"]            = params.prompt;
    reply["stops"]             = list(params.additional_stops);
    reply["preserved"]         = list(params.preserved_tokens);
    reply["grammar"]           = params.grammar;
    reply["grammar_lazy"]      = params.grammar_lazy;
    reply["grammar_prefilled"] = inputs.grammar.empty();  // the caller's own knows nothing of the prompt
    reply["triggers"]          = triggers;
    reply["generation_prompt"] = params.generation_prompt;
    reply["format"]            = static_cast<int>(params.format);
    reply["parser"]            = params.parser;
    reply["reasoning"]         = inputs.reasoning_format != COMMON_REASONING_FORMAT_NONE;
    reply["thinking_start"]    = params.thinking_start_tag;
    reply["thinking_ends"]     = list(params.thinking_end_tags);
    return reply.dump();
}

// common_chat_templates_init loses the reason on its way out; reading the source again finds it.
std::string template_fault(const llama_model * model, const char * override, const std::exception & lost) {
    const char * source = override != nullptr ? override : llama_model_chat_template(model, nullptr);
    try {
        common_chat_template probe(source != nullptr ? source : "", "", "");
    } catch (const std::exception & e) {
        return e.what();
    }
    return lost.what();
}

// ---- grammar ---------------------------------------------------------------------------------

std::string pattern_of(int type, const std::string & value) {
    if (type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD) {
        return regex_escape(value);
    }
    if (type == COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL) {
        const bool begins = !value.empty() && value.front() == '^';
        const bool ends   = !value.empty() && value.back() == '$';
        return (begins ? "" : "^") + value + (ends ? "" : "$");
    }
    return value;
}

llama_sampler * lazy_grammar(const llama_vocab * vocab, const std::string & grammar, const common_json & triggers) {
    std::vector<std::string> patterns;
    std::vector<llama_token> tokens;
    for (const common_json & trigger : triggers) {
        const int type = trigger.at("type").get<int>();
        if (type == COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN) {
            tokens.push_back(trigger.at("token").get<int>());
        } else {
            patterns.push_back(pattern_of(type, trigger.at("value").get<std::string>()));
        }
    }
    std::vector<const char *> pointers;
    for (const std::string & pattern : patterns) {
        pointers.push_back(pattern.c_str());
    }
    return llama_sampler_init_grammar_lazy_patterns(
        vocab, grammar.c_str(), "root", pointers.data(), pointers.size(), tokens.data(), tokens.size());
}

llama_sampler * grammar_of(const llama_vocab * vocab, const common_json & reply) {
    const std::string grammar = reply.at("grammar").get<std::string>();
    if (grammar.empty()) {
        return nullptr;
    }
    if (reply.at("grammar_lazy").get<bool>()) {
        return lazy_grammar(vocab, grammar, reply.at("triggers"));
    }
    llama_sampler * sampler = llama_sampler_init_grammar(vocab, grammar.c_str(), "root");
    // A grammar made from a template describes the answer with the opening that the prompt holds.
    const std::string opening = reply.at("generation_prompt").get<std::string>();
    if (sampler == nullptr || !reply.at("grammar_prefilled").get<bool>() || opening.empty()) {
        return sampler;
    }
    try {
        const llama_tokens tokens = common_tokenize(vocab, opening, false, true);
        for (size_t i = 0; i < tokens.size(); i++) {
            const std::string piece = common_token_to_piece(vocab, tokens[i], true);
            // Some tokenizers put a space in front of the first token.
            if (i > 0 || piece.empty() || piece[0] != ' ' || opening[0] == ' ') {
                llama_sampler_accept(sampler, tokens[i]);
            }
        }
    } catch (...) {
        llama_sampler_free(sampler);
        throw;
    }
    return sampler;
}

// ---- completion -> message -------------------------------------------------------------------

common_json additions(const std::vector<common_chat_msg_diff> & diffs) {
    common_json found = common_json::object();
    common_json calls = common_json::array();
    for (const common_chat_msg_diff & diff : diffs) {
        if (!diff.reasoning_content_delta.empty()) {
            found["reasoning"] = diff.reasoning_content_delta;
        }
        if (!diff.content_delta.empty()) {
            found["content"] = diff.content_delta;
        }
        if (diff.tool_call_index != std::string::npos) {
            common_json call  = common_json::object();
            call["index"]     = static_cast<int64_t>(diff.tool_call_index);
            call["name"]      = diff.tool_call_delta.name;
            call["arguments"] = diff.tool_call_delta.arguments;
            calls.push_back(call);
        }
    }
    if (!calls.empty()) {
        found["calls"] = calls;
    }
    return found;
}

}  // namespace

void lml_free(char * text) {
    std::free(text);
}

struct lml_chat * lml_chat_init(const struct llama_model * model, const char * override, char ** error) {
    try {
        common_chat_templates_ptr templates = common_chat_templates_init(model, override == nullptr ? "" : override);
        std::string source = common_chat_templates_source(templates.get());
        return new lml_chat{ std::move(templates), std::move(source) };
    } catch (const std::exception & e) {
        *error = owned(template_fault(model, override, e));
        return nullptr;
    }
}

void lml_chat_free(struct lml_chat * chat) {
    delete chat;
}

const char * lml_chat_source(const struct lml_chat * chat) {
    return chat->source.c_str();
}

char * lml_chat_render(struct lml_chat * chat, const char * request) {
    try {
        return owned(render(*chat, request));
    } catch (const std::exception & e) {
        return error_json(e.what());
    }
}

struct llama_sampler * lml_grammar_init(const struct llama_vocab * vocab, const char * reply, char ** error) {
    try {
        const common_json parsed  = common_json::parse(reply);
        llama_sampler *   sampler = grammar_of(vocab, parsed);
        if (sampler == nullptr && !parsed.at("grammar").get<std::string>().empty()) {
            *error = owned("llama.cpp cannot read the grammar");
        }
        return sampler;
    } catch (const std::exception & e) {
        *error = owned(e.what());
        return nullptr;
    }
}

bool lml_grammar_accept(struct llama_sampler * grammar, const llama_token * tokens, size_t n_tokens) {
    try {
        for (size_t i = 0; i < n_tokens; i++) {
            llama_sampler_accept(grammar, tokens[i]);
        }
        return true;
    } catch (const std::exception &) {
        return false;
    }
}

struct lml_answer * lml_answer_init(const char * reply, char ** error) {
    try {
        const common_json parsed = common_json::parse(reply);
        common_chat_parser_params params;
        params.format = static_cast<common_chat_format>(parsed.at("format").get<int>());
        params.generation_prompt = parsed.at("generation_prompt").get<std::string>();
        const std::string parser = parsed.at("parser").get<std::string>();
        if (!parser.empty()) {
            params.parser.load(parser);
        }
        return new lml_answer{ growing_answer(std::move(params)) };
    } catch (const std::exception & e) {
        *error = owned(e.what());
        return nullptr;
    }
}

void lml_answer_free(struct lml_answer * answer) {
    delete answer;
}

bool lml_answer_is_plain(const struct lml_answer * answer) {
    return answer->growing.is_plain();
}

char * lml_answer_push(struct lml_answer * answer, const char * text, size_t n_bytes) {
    try {
        const common_json found = additions(answer->growing.push(std::string(text, n_bytes)));
        return found.empty() ? nullptr : owned(found.dump());
    } catch (const std::exception &) {
        return nullptr;  // while it grows, a text may not be in any form yet
    }
}

char * lml_answer_finish(struct lml_answer * answer, bool is_whole) {
    try {
        const common_json found = additions(answer->growing.finish(is_whole));
        return found.empty() ? nullptr : owned(found.dump());
    } catch (const std::exception & e) {
        return is_whole ? error_json(e.what()) : nullptr;
    }
}
