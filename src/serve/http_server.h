// HttpServer: HTTP/1.1 on one epoll loop of its own thread, for any number of slow connections. A handler
// gets each request whole, on the loop: what takes time goes elsewhere, and answers through the Exchange.
// Always holds: limits of ConnectionLimits apply to every peer; destruction closes everything.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "serve/connection.h"
#include "serve/exchange.h"
#include "serve/tls.h"

namespace duet {

struct HttpServerOptions {
  std::string host = "127.0.0.1";  // "0.0.0.0" or "::": every interface; with a '/': a Unix socket's path
  int port = 8000;                 // 0: any free one
  int64_t max_connections = 4096;
  TlsFiles tls;
  ConnectionLimits limits;
};

class HttpServer {
 public:
  /// Listens from now on. Throws Error(kInvalidArgument) with the system's reason.
  HttpServer(const HttpServerOptions& options, Connection::Handler handler);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const { return port_; }
  /// No new connections; those that are idle are closed, others after their present reply.
  void stop_accepting();
  int64_t connections() const { return connections_count_; }

 private:
  class Waker;

  void listen_on(const std::string& host, int port);
  void listen_on_path(const std::string& path);
  void loop();
  void accept_all();
  void refuse_one(int fd);
  void look_after(int64_t now);
  void serve_replies();
  void settle(int64_t id, bool alive);
  void forget(int64_t id);
  void begin_stopping();

  HttpServerOptions options_;
  Connection::Handler handler_;
  std::unique_ptr<TlsContext> tls_;
  std::shared_ptr<Waker> waker_;
  int listener_ = -1, epoll_ = -1, port_ = 0;
  bool accepting_ = true;
  int64_t next_id_ = 16, accept_again_ns_ = 0;  // ids below: the listener and the waker
  std::unordered_map<int64_t, std::unique_ptr<Connection>> connections_;
  std::unordered_map<int64_t, uint32_t> watched_;  // events that epoll was asked for
  std::atomic<int64_t> connections_count_{0};
  std::atomic<bool> stop_{false}, stop_accepting_{false};
  std::thread thread_;
};

}  // namespace duet
