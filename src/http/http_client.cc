#include "http/http_client.h"

#include <fmt/format.h>
#include <http_parser.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "base/error.h"
#include "http/unix_socket.h"

namespace duet {

namespace {

[[noreturn]] void fail(const std::string& what) {
  throw Error(ErrorKind::kPeer, what);
}

void set_patience(int fd, int64_t seconds) {
  const timeval patience{seconds, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

int connected_unix_socket(const std::string& path, int64_t patience_seconds) {
  const int fd = connect_to_path(path);
  if (fd < 0) fail(fmt::format("cannot connect to {}: {}", path, std::strerror(errno)));
  set_patience(fd, patience_seconds);
  return fd;
}

int connected_socket(const HttpUrl& server, int64_t patience_seconds) {
  if (is_socket_path(server.host)) return connected_unix_socket(server.host, patience_seconds);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(server.host.c_str(), std::to_string(server.port).c_str(), &hints, &found);
  if (code != 0) fail(fmt::format("{}: {}", server.host, gai_strerror(code)));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  int error = 0;
  for (const addrinfo* at = found; at; at = at->ai_next) {
    const int fd = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol);
    if (fd < 0) {
      error = errno;
      continue;
    }
    set_patience(fd, patience_seconds);
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, at->ai_addr, at->ai_addrlen) == 0) return fd;
    error = errno;
    close(fd);
  }
  fail(fmt::format("cannot connect to {}:{}: {}", server.host, server.port, std::strerror(error)));
}

// A socket, with TLS or without.
struct Connection {
  int fd = -1;
  SSL_CTX* context = nullptr;
  SSL* ssl = nullptr;

  Connection(const HttpUrl& server, int64_t patience_seconds)
      : fd(connected_socket(server, patience_seconds)) {
    if (server.scheme != "https") return;
    context = SSL_CTX_new(TLS_client_method());
    ssl = context ? SSL_new(context) : nullptr;
    if (!ssl || SSL_set_fd(ssl, fd) != 1 || SSL_set_tlsext_host_name(ssl, server.host.c_str()) != 1 ||
        SSL_connect(ssl) != 1) {
      const char* reason = ERR_reason_error_string(ERR_get_error());
      const std::string text = reason ? reason : "the connection was closed";
      release();
      fail(fmt::format("TLS with {}:{}: {}", server.host, server.port, text));
    }
  }
  ~Connection() { release(); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void release() {
    SSL_free(ssl);
    SSL_CTX_free(context);
    close(fd);
    ERR_clear_error();
  }
  bool write(std::string_view bytes) {
    while (!bytes.empty()) {
      size_t done = 0;
      if (ssl) {
        if (SSL_write_ex(ssl, bytes.data(), bytes.size(), &done) != 1) return false;
      } else {
        const ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (n <= 0) return false;
        done = static_cast<size_t>(n);
      }
      bytes.remove_prefix(done);
    }
    return true;
  }
  /// 0: the peer has closed, or waited too long (errno is EAGAIN then).
  size_t read(char* bytes, size_t size) {
    errno = 0;
    if (ssl) {
      size_t done = 0;
      return SSL_read_ex(ssl, bytes, size, &done) == 1 ? done : 0;
    }
    const ssize_t n = recv(fd, bytes, size, 0);
    return n > 0 ? static_cast<size_t>(n) : 0;
  }
};

// What the parser hands out of one response.
struct Response {
  const HttpCall* call = nullptr;
  const HttpPieceSink* on_body = nullptr;
  std::vector<std::pair<std::string, std::string>> headers;
  bool in_value = false;
  bool done = false;
};

// Names and values may come in pieces.
int on_header_name(http_parser* parser, const char* at, size_t size) {
  Response& r = *static_cast<Response*>(parser->data);
  if (r.in_value || r.headers.empty()) r.headers.emplace_back();
  r.in_value = false;
  r.headers.back().first.append(at, size);
  return 0;
}

int on_header_value(http_parser* parser, const char* at, size_t size) {
  Response& r = *static_cast<Response*>(parser->data);
  r.in_value = true;
  r.headers.back().second.append(at, size);
  return 0;
}

int on_headers_complete(http_parser* parser) {
  const Response& r = *static_cast<Response*>(parser->data);
  if (r.call->on_head) r.call->on_head(static_cast<int>(parser->status_code), r.headers);
  return 0;
}

int on_body(http_parser* parser, const char* at, size_t size) {
  (*static_cast<Response*>(parser->data)->on_body)(parser->status_code, {at, size});
  return 0;
}

int on_complete(http_parser* parser) {
  static_cast<Response*>(parser->data)->done = true;
  http_parser_pause(parser, 1);
  return 0;
}

}  // namespace

HttpUrl parse_url(const std::string& url) {
  http_parser_url parts;
  http_parser_url_init(&parts);
  const auto part = [&](int field) {
    return (parts.field_set & (1 << field)) != 0
               ? url.substr(parts.field_data[field].off, parts.field_data[field].len)
               : std::string();
  };
  const bool valid = http_parser_parse_url(url.data(), url.size(), 0, &parts) == 0;
  HttpUrl result;
  if (valid) result = {part(UF_SCHEMA), part(UF_HOST), part(UF_PATH), parts.port};
  if (!valid || (result.scheme != "http" && result.scheme != "https") || result.host.empty())
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("\"{}\" is no URL of a server; expected http://host:port or https://…", url));
  if (result.port == 0) result.port = result.scheme == "https" ? 443 : 80;
  while (result.path.ends_with('/')) result.path.pop_back();
  return result;
}

int http_call(const HttpCall& call, const HttpPieceSink& on_piece) {
  const HttpUrl& server = call.server;
  Connection connection(server, call.patience_seconds);
  // Told of the end before the descriptor may mean something else.
  struct Told {
    const HttpCall& call;
    Told(const HttpCall& c, int fd) : call(c) {
      if (call.on_socket) call.on_socket(fd);
    }
    ~Told() {
      if (call.on_socket) call.on_socket(-1);
    }
  } const told(call, connection.fd);
  const bool v6 = server.host.find(':') != std::string::npos;
  const std::string request = fmt::format(
      "{} {}{} HTTP/1.1\r\nHost: {}{}{}:{}\r\nConnection: close\r\n{}Content-Length: {}\r\n\r\n{}",
      call.method, server.path, call.path, v6 ? "[" : "",
      is_socket_path(server.host) ? std::string_view("localhost") : std::string_view(server.host),
      v6 ? "]" : "", server.port, call.headers, call.body.size(), call.body);
  if (!connection.write(request)) fail("the server closed the connection while the request was sent");
  Response response;
  response.call = &call;
  response.on_body = &on_piece;
  http_parser parser;
  http_parser_init(&parser, HTTP_RESPONSE);
  parser.data = &response;
  http_parser_settings settings;
  http_parser_settings_init(&settings);
  settings.on_header_field = on_header_name;
  settings.on_header_value = on_header_value;
  settings.on_headers_complete = on_headers_complete;
  settings.on_body = on_body;
  settings.on_message_complete = on_complete;
  char buffer[65536];
  while (!response.done) {
    const size_t size = connection.read(buffer, sizeof buffer);
    if (size == 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      fail(fmt::format("nothing came for {} s", call.patience_seconds));
    http_parser_execute(&parser, &settings, buffer, size);
    const http_errno error = HTTP_PARSER_ERRNO(&parser);
    if (error != HPE_OK && error != HPE_PAUSED)
      fail(fmt::format("the answer is no HTTP: {}", http_errno_description(error)));
    if (size == 0 && !response.done) fail("the server closed the connection before its answer was complete");
  }
  return static_cast<int>(parser.status_code);
}

}  // namespace duet
