// Chats: from messages to a prompt, and to the grammar and parser of the answer.

#include "chat.h"

#include <exception>
#include <string>
#include <vector>

#include "bridge.h"
#include "text.h"

struct lml_chat {
    common_chat_templates_ptr templates;
    std::string               source;
};

namespace {

// ---- request -> prompt, grammar and parser ---------------------------------------------------

common_chat_templates_inputs inputs_of(const lml_chat & chat, const common_json & request) {
    common_chat_templates_inputs inputs;
    inputs.messages = common_chat_msgs_parse_oaicompat(request.at("messages"));
    // A message with calls cannot be continued: after it, the model begins a new turn.
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
            // The grammar of calls is made from `schemas`; the template sees the tools unchanged.
            inputs.chat_template_kwargs["tools"] = common_chat_tools_to_json_oaicompat(inputs.tools).dump();
            for (size_t i = 0; i < inputs.tools.size(); i++) {
                inputs.tools[i].parameters = request.at("schemas").at(i).dump();
            }
        }
    }
    if (request.contains("json_schema")) {
        inputs.json_schema = request.at("json_schema").dump();
    }
    inputs.enable_thinking  = request.value("enable_thinking", true);
    inputs.reasoning_format = request.value("reasoning", true) ? COMMON_REASONING_FORMAT_DEEPSEEK
                                                               : COMMON_REASONING_FORMAT_NONE;
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
        triggers.push_back({ { "type", trigger.type }, { "value", trigger.value }, { "token", trigger.token } });
    }
    const common_json reply = {
        { "prompt", params.prompt },
        { "stops", params.additional_stops },
        { "preserved", params.preserved_tokens },
        { "grammar", params.grammar },
        { "grammar_lazy", params.grammar_lazy },
        { "triggers", triggers },
        { "generation_prompt", params.generation_prompt },
        { "format", params.format },
        { "parser", params.parser },
        { "reasoning", inputs.reasoning_format != COMMON_REASONING_FORMAT_NONE },
        { "thinking_start", params.thinking_start_tag },
        { "thinking_ends", params.thinking_end_tags },
    };
    return reply.dump();
}

// The exception of common_chat_templates_init lacks the reason; parsing the source again finds it.
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
    // A template's grammar starts with the answer's opening, which is already in the prompt.
    const std::string opening = reply.at("generation_prompt").get<std::string>();
    if (sampler == nullptr || opening.empty()) {
        return sampler;
    }
    try {
        const llama_tokens tokens = common_tokenize(vocab, opening, false, true);
        for (size_t i = 0; i < tokens.size(); i++) {
            const std::string piece = common_token_to_piece(vocab, tokens[i], true);
            // Some tokenizers add a space before the first token.
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
        return failure(e.what());
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
