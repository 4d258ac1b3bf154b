// Parses an answer while it grows, at a cost per token that does not depend on the answer's length.
//
// llama.cpp's parsers read only whole texts. But the middle of a long stretch (a thought, content, a string in
// arguments) does not change the structure of the result: until the stretch ends, each character is one more of
// the same kind. So the parser gets a window, which is the text without such middles. New text adds the same to
// the window's message as to the text's. If no middle can be cut, the longer the window is, the less often it
// is parsed. At the end the parser reads the whole text.

#include <algorithm>
#include <map>
#include <memory>
#include <stdexcept>
#include <variant>

#include "bridge.h"
#include "chat-peg-parser.h"
#include "chat.h"
#include "peg-parser.h"
#include "text.h"

namespace {

// In bytes, except MAX_DEPTH.
constexpr size_t KEPT       = 160;   // kept at both ends of a stretch: longer than any tag
constexpr size_t MIN_CUT    = 256;   // a shorter middle is not worth a cut
constexpr size_t MIN_WINDOW = 1024;  // a window up to this size is parsed for each token
constexpr size_t MAX_DEPTH  = 64;    // of nested containers; deeper in, no cut is tried
constexpr size_t ESCAPE     = 6;     // the longest escape in a JSON string

struct reading {
    common_peg_parse_context context;
    common_peg_parse_result  result;
    common_chat_msg          message;
};

std::unique_ptr<common_chat_peg_mapper> mapper_of(common_chat_format format, common_chat_msg & message) {
    switch (format) {
        case COMMON_CHAT_FORMAT_PEG_GEMMA4:
            return std::make_unique<common_chat_peg_gemma4_mapper>(message);
        case COMMON_CHAT_FORMAT_PEG_MINIMAX_M3:
            return std::make_unique<common_chat_peg_minimax_m3_mapper>(message);
        default:
            return std::make_unique<common_chat_peg_mapper>(message);
    }
}

// As common_chat_peg_parse, but without a copy of the parser, and it returns the syntax tree, too.
reading read(const common_chat_parser_params & params, const std::string & text, bool is_partial) {
    reading made{ common_peg_parse_context(text, COMMON_PEG_PARSE_FLAG_LENIENT), {}, {} };
    made.result = params.parser.parse(made.context);
    if (made.result.fail() && !(is_partial && made.result.end > 0)) {
        throw std::runtime_error("the answer is not in the form of its template");
    }
    made.message.role = "assistant";
    mapper_of(params.format, made.message)->from_ast(made.context.ast, made.result);
    return made;
}

// ---- middles that can be cut -----------------------------------------------------------------

struct stretch {
    size_t begin = 0, end = 0;

    size_t size() const { return end - begin; }
};

bool begins_character(const std::string & text, size_t at) {
    return (static_cast<unsigned char>(text[at]) & 0xC0) != 0x80;
}

// The next place from `at` on, at most KEPT / 2 away, that is not inside a character or an escape.
size_t next_border(const std::string & text, size_t at) {
    const auto is_border = [&text](size_t place) {
        const size_t from = place - std::min(place, ESCAPE);
        return begins_character(text, place) && text.find('\\', from) >= place;
    };
    const size_t end = std::min(at + KEPT / 2, text.size());
    while (at < end && !is_border(at)) {
        at++;
    }
    return at < end ? at : std::string::npos;
}

// The middle of a stretch in which all characters mean the same to the parser.
stretch middle_of_text(const std::string & text, size_t begin, size_t end) {
    const stretch found{ next_border(text, begin + KEPT), next_border(text, end - KEPT) };
    return found.begin < found.end && found.end < end ? found : stretch{};
}

// Follows JSON, or the same in Python's syntax, to tell if a parser is in the same state at two places.
class json_state {
  public:
    // The state: the open containers, and the quote of an open string or a comma. "" where a cut is not allowed.
    std::string key() const {
        if (n_escaped > 0 || (quote == 0 && last != ',') || open.size() > MAX_DEPTH) {
            return "";
        }
        return open + (quote != 0 ? quote : last);
    }

    void take(char c) {
        if (n_escaped > 0) {
            n_escaped = n_escaped == 1 && c == 'u' && last == '\\' ? 4 : n_escaped - 1;
        } else if (quote != 0) {
            n_escaped = c == '\\' ? 1 : 0;
            quote     = c == quote ? 0 : quote;
        } else if (c == '"' || c == '\'') {
            quote = c;
        } else if (c == '{' || c == '[') {
            open += c;
        } else if ((c == '}' || c == ']') && !open.empty()) {
            open.pop_back();
        } else if (!open.empty() && open.back() != '[' && (c == ':' || c == ',')) {
            open.back() = c == ':' ? ':' : '{';  // ':' if a value follows, '{' if a name follows
        }
        last = c;
    }

  private:
    std::string open;
    char        quote = 0, last = 0;
    int         n_escaped = 0;
};

stretch middle_of_json(const std::string & text, size_t begin, size_t end) {
    json_state                    state;
    std::map<std::string, size_t> first;
    stretch                       longest;
    for (size_t at = begin; at + KEPT <= end; at++) {
        if (at >= begin + KEPT && begins_character(text, at) && !state.key().empty()) {
            const stretch found{ first.emplace(state.key(), at).first->second, at };
            longest = found.size() > longest.size() ? found : longest;
        }
        state.take(text[at]);
    }
    return longest;
}

bool starts_with(const std::string & text, const char * start) {
    return text.rfind(start, 0) == 0;
}

// The longest middle of any stretch below a node.
void find_middle(const reading & of, common_peg_ast_id id, stretch & longest) {
    const common_peg_ast_node & node = of.context.ast.get(id);
    if (node.end - node.start < 2 * KEPT + MIN_CUT) {
        return;
    }
    stretch found;
    if (starts_with(node.rule, "json-") || starts_with(node.rule, "python-")) {
        found = middle_of_json(of.context.input, node.start, node.end);
    } else if (node.children.empty()) {
        found = middle_of_text(of.context.input, node.start, node.end);
    } else {
        for (const common_peg_ast_id child : node.children) {
            find_middle(of, child, longest);
        }
    }
    longest = found.size() > longest.size() ? found : longest;
}

// Whether `text` equals `other`, or is `other` without a middle.
bool is_shorter(const std::string & text, const std::string & other) {
    if (text.size() >= other.size()) {
        return text == other;
    }
    const size_t n_head = std::mismatch(text.begin(), text.end(), other.begin()).first - text.begin();
    const size_t n_tail = std::mismatch(text.rbegin(), text.rend(), other.rbegin()).first - text.rbegin();
    return n_head + n_tail >= text.size() && n_tail >= ESCAPE;  // else the end may be cut, and would be sent twice
}

bool is_shorter(const common_chat_msg & message, const common_chat_msg & other) {
    const auto same_call = [](const common_chat_tool_call & a, const common_chat_tool_call & b) {
        return a.name == b.name && a.id == b.id && is_shorter(a.arguments, b.arguments);
    };
    return is_shorter(message.content, other.content) &&
           is_shorter(message.reasoning_content, other.reasoning_content) &&
           std::equal(message.tool_calls.begin(), message.tool_calls.end(), other.tool_calls.begin(),
                      other.tool_calls.end(), same_call);
}

void add(common_chat_msg & message, const common_chat_msg_diff & diff) {
    message.reasoning_content += diff.reasoning_content_delta;
    message.content += diff.content_delta;
    if (diff.tool_call_index == std::string::npos) {
        return;
    }
    if (diff.tool_call_index >= message.tool_calls.size()) {
        message.tool_calls.resize(diff.tool_call_index + 1);
    }
    common_chat_tool_call & call = message.tool_calls[diff.tool_call_index];
    if (!diff.tool_call_delta.name.empty()) {
        call.name = diff.tool_call_delta.name;
        call.id   = diff.tool_call_delta.id;
    }
    call.arguments += diff.tool_call_delta.arguments;
}

// Whether a parser takes any text, and all of it as content.
bool is_content_only(const common_peg_parser_variant & parser) {
    if (const auto * until = std::get_if<common_peg_until_parser>(&parser)) {
        return until->delimiters.empty();
    }
    if (const auto * tag = std::get_if<common_peg_tag_parser>(&parser)) {
        return tag->tag == common_chat_peg_builder::CONTENT;
    }
    return std::holds_alternative<common_peg_epsilon_parser>(parser) ||
           std::holds_alternative<common_peg_literal_parser>(parser) ||
           std::holds_alternative<common_peg_sequence_parser>(parser) ||
           std::holds_alternative<common_peg_end_parser>(parser);
}

common_json json_of(const std::vector<common_chat_msg_diff> & diffs) {
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
            calls.push_back({ { "index", diff.tool_call_index },
                              { "name", diff.tool_call_delta.name },
                              { "arguments", diff.tool_call_delta.arguments } });
        }
    }
    if (!calls.empty()) {
        found["calls"] = calls;
    }
    return found;
}

}  // namespace

struct lml_answer {
    explicit lml_answer(common_chat_parser_params given) : params(std::move(given)), text(params.generation_prompt) {
        if (params.parser.empty()) {
            params.parser =
                build_chat_peg_parser([](common_chat_peg_builder & p) { return p.content(p.rest()) + p.end(); });
            text.clear();
        }
        window       = text;
        n_opening    = text.size();
        n_worth_cut  = std::max(MIN_WINDOW, 2 * window.size());
        message.role = "assistant";
    }

    bool is_plain() const {
        for (common_peg_parser_id id = 0; id < params.parser.size(); id++) {
            if (!is_content_only(params.parser.get(id))) {
                return false;
            }
        }
        return true;
    }

    std::vector<common_chat_msg_diff> push(const std::string & more) {
        text += more;
        window += more;
        n_unread += more.size();
        if (n_unread < window.size() / MIN_WINDOW) {
            return {};
        }
        n_unread         = 0;
        const auto diffs = common_chat_msg_diff::compute_diffs(message, read(params, window, true).message);
        for (const common_chat_msg_diff & diff : diffs) {
            add(message, diff);
            add(sent, diff);
        }
        if (window.size() > n_worth_cut) {
            shorten();
        }
        return diffs;
    }

    std::vector<common_chat_msg_diff> finish(bool is_whole) const {
        return common_chat_msg_diff::compute_diffs(sent, read(params, text, !is_whole).message);
    }

    // Cuts middles out of the window, one by one, as long as the message is the same apart from them.
    void shorten() {
        while (window.size() > MIN_WINDOW) {
            const reading before = read(params, window, true);
            if (before.message != message) {
                return;  // the parser now reads the earlier text differently
            }
            stretch middle;
            for (const common_peg_ast_id id : before.result.nodes) {
                find_middle(before, id, middle);
            }
            if (middle.size() < MIN_CUT) {
                break;
            }
            std::string shorter = window;
            shorter.erase(middle.begin, middle.size());
            const reading after = read(params, shorter, true);
            if (after.result.type != before.result.type || !is_shorter(after.message, before.message)) {
                break;
            }
            window  = std::move(shorter);
            message = after.message;
        }
        n_worth_cut = std::max(MIN_WINDOW, 2 * window.size());
    }

    common_chat_parser_params params;
    std::string               text;          // the answer's opening from the prompt, and all text so far
    std::string               window;        // `text` without the middles of long stretches
    common_chat_msg           message;       // the parsed window
    common_chat_msg           sent;          // the sum of all results of `push`
    size_t                    n_opening;     // bytes of `text` that are part of the prompt
    size_t                    n_unread = 0;  // bytes since the window was last parsed
    size_t                    n_worth_cut;   // a longer window should be shortened (bytes)
};

struct lml_answer * lml_answer_init(const char * reply, char ** error) {
    try {
        const common_json         parsed = common_json::parse(reply);
        common_chat_parser_params params;
        params.format            = static_cast<common_chat_format>(parsed.at("format").get<int>());
        params.generation_prompt = parsed.at("generation_prompt").get<std::string>();
        const std::string parser = parsed.at("parser").get<std::string>();
        if (!parser.empty()) {
            params.parser.load(parser);
        }
        return new lml_answer(std::move(params));
    } catch (const std::exception & e) {
        *error = owned(e.what());
        return nullptr;
    }
}

void lml_answer_free(struct lml_answer * answer) {
    delete answer;
}

bool lml_answer_is_plain(const struct lml_answer * answer) {
    return answer->is_plain();
}

char * lml_answer_push(struct lml_answer * answer, const char * text, size_t n_bytes) {
    try {
        const common_json found = json_of(answer->push(std::string(text, n_bytes)));
        return found.empty() ? nullptr : owned(found.dump());
    } catch (const std::exception &) {
        return nullptr;  // an unfinished text may not match the form yet
    }
}

char * lml_answer_finish(struct lml_answer * answer, bool is_whole) {
    try {
        const common_json found = json_of(answer->finish(is_whole));
        return found.empty() ? nullptr : owned(found.dump());
    } catch (const std::exception & e) {
        return is_whole ? failure(e.what(), { { "text", answer->text.substr(answer->n_opening) },
                                              { "content", answer->sent.content } })
                        : nullptr;
    }
}
