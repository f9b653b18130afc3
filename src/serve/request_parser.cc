#include "serve/request_parser.h"

#include <fmt/format.h>
#include <http_parser.h>

#include <algorithm>
#include <cctype>
#include <utility>

namespace duet {

struct RequestParser::State_ {
  http_parser parser{};
  http_parser_settings settings{};
  size_t max_body = 0;
  size_t header_bytes = 0;
  std::string target;
  HttpRequest request;
  bool value_next = false;  // the last header piece was a value
  bool begun = false, in_body = false, complete = false, expects = false;
  int status = 0;
  std::string message;

  int fail(int code, std::string text) {
    status = code;
    message = std::move(text);
    return -1;
  }
  int count_header(size_t bytes) {
    header_bytes += bytes;
    if (header_bytes <= kMaxHeaderBytes) return 0;
    return fail(431, fmt::format("request line and headers are longer than {} bytes", kMaxHeaderBytes));
  }
  void reset() {
    header_bytes = 0;
    target.clear();
    request = {};
    value_next = begun = in_body = complete = expects = false;
  }
};

namespace {

using Parser = http_parser;

template <typename State>
State& of(Parser* parser) {
  return *static_cast<State*>(parser->data);
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

template <typename State>
int headers_complete(Parser* parser) {
  State& s = of<State>(parser);
  HttpRequest& r = s.request;
  for (auto& [name, value] : r.headers) name = lower(std::move(name));
  r.method = http_method_str(static_cast<http_method>(parser->method));
  const size_t question = s.target.find('?');
  r.path = decode_percent(std::string_view(s.target).substr(0, question));
  if (question != std::string::npos) r.query = s.target.substr(question + 1);
  r.keep_alive = http_should_keep_alive(parser) != 0;
  if (parser->upgrade && r.method == "CONNECT") return s.fail(405, "CONNECT is not supported");
  const bool length_known = (parser->flags & F_CONTENTLENGTH) != 0;
  if (length_known && parser->content_length > s.max_body)
    return s.fail(413, fmt::format("the body has {} bytes, --max-request-bytes is {}", parser->content_length,
                                   s.max_body));
  const std::string* expect = r.header("expect");
  s.expects = expect && lower(*expect) == "100-continue";
  s.in_body = true;
  return 0;
}

template <typename State>
void set_callbacks(http_parser_settings& settings) {
  settings.on_message_begin = [](Parser* p) {
    of<State>(p).begun = true;
    return 0;
  };
  settings.on_url = [](Parser* p, const char* at, size_t length) {
    State& s = of<State>(p);
    s.target.append(at, length);
    return s.count_header(length);
  };
  settings.on_header_field = [](Parser* p, const char* at, size_t length) {
    State& s = of<State>(p);
    if (s.in_body) return 0;  // a chunked body's trailers mean nothing here
    if (s.request.headers.empty() || s.value_next) s.request.headers.emplace_back();
    s.value_next = false;
    s.request.headers.back().first.append(at, length);
    return s.count_header(length + 4);
  };
  settings.on_header_value = [](Parser* p, const char* at, size_t length) {
    State& s = of<State>(p);
    if (s.in_body) return s.count_header(length);
    s.value_next = true;
    s.request.headers.back().second.append(at, length);
    return s.count_header(length);
  };
  settings.on_headers_complete = headers_complete<State>;
  settings.on_body = [](Parser* p, const char* at, size_t length) {
    State& s = of<State>(p);
    if (s.request.body.size() + length > s.max_body)
      return s.fail(413, fmt::format("the body is longer than --max-request-bytes, {}", s.max_body));
    s.request.body.append(at, length);
    return 0;
  };
  settings.on_message_complete = [](Parser* p) {
    of<State>(p).complete = true;
    http_parser_pause(p, 1);
    return 0;
  };
}

}  // namespace

RequestParser::RequestParser(size_t max_body_bytes) : state_(std::make_unique<State_>()) {
  state_->max_body = max_body_bytes;
  http_parser_init(&state_->parser, HTTP_REQUEST);
  state_->parser.data = state_.get();
  http_parser_settings_init(&state_->settings);
  set_callbacks<State_>(state_->settings);
}

RequestParser::~RequestParser() = default;

RequestParser::State RequestParser::feed(std::string_view bytes, size_t& used) {
  State_& s = *state_;
  used = 0;
  if (s.status != 0) return State::kFailed;
  if (s.complete) return State::kComplete;
  used = http_parser_execute(&s.parser, &s.settings, bytes.data(), bytes.size());
  const http_errno error = HTTP_PARSER_ERRNO(&s.parser);
  if (s.complete && error == HPE_PAUSED) {
    http_parser_pause(&s.parser, 0);
    return State::kComplete;
  }
  // An Upgrade is not taken up: the request is answered as it stands, in HTTP/1.1.
  if (s.complete) return State::kComplete;
  if (error == HPE_OK) return State::kMore;
  if (s.status == 0) {
    const bool too_long = error == HPE_HEADER_OVERFLOW;
    s.fail(too_long ? 431 : 400,
           fmt::format("this is not an HTTP/1.1 request: {}", http_errno_description(error)));
  }
  return State::kFailed;
}

HttpRequest RequestParser::take() {
  HttpRequest request = std::move(state_->request);
  state_->reset();
  return request;
}

bool RequestParser::begun() const {
  return state_->begun;
}
bool RequestParser::in_body() const {
  return state_->in_body;
}
bool RequestParser::take_expectation() {
  return std::exchange(state_->expects, false);
}
int RequestParser::status() const {
  return state_->status;
}
const std::string& RequestParser::message() const {
  return state_->message;
}

}  // namespace duet
