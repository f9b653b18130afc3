// A plain HTTP client for the server's tests: blocking, one connection, every wait bounded.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/json_text.h"

namespace duet {

struct HttpAnswer {
  int status = 0;
  std::string head, body;
  nlohmann::json json() const { return try_json(body); }
};

class TestClient {
 public:
  explicit TestClient(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval patience{20, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(port));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0;
  }
  ~TestClient() { hang_up(); }
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  bool connected() const { return connected_; }
  void hang_up() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  bool send_raw(const std::string& bytes) {
    for (size_t sent = 0; sent < bytes.size();) {
      const ssize_t n = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return false;
      sent += static_cast<size_t>(n);
    }
    return true;
  }
  void send_request(const std::string& method, const std::string& path, const std::string& body,
                    const std::string& headers = "") {
    send_raw(method + " " + path + " HTTP/1.1\r\nHost: t\r\n" + headers +
             "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  }
  /// Until `text` has arrived; false when nothing more comes.
  bool read_until(const std::string& text) {
    while (input_.find(text) == std::string::npos) {
      if (!read_some()) return false;
    }
    return true;
  }
  HttpAnswer answer() {
    HttpAnswer a;
    if (!read_until("\r\n\r\n")) return a;
    const size_t end = input_.find("\r\n\r\n");
    a.head = input_.substr(0, end + 2);
    input_.erase(0, end + 4);
    a.status = std::atoi(a.head.c_str() + 9);
    if (const size_t at = a.head.find("Content-Length: "); at != std::string::npos) {
      const auto size = static_cast<size_t>(std::atol(a.head.c_str() + at + 16));
      while (input_.size() < size && read_some()) {
      }
      a.body = input_.substr(0, size);
      input_.erase(0, size);
    } else if (a.head.find("chunked") != std::string::npos) {
      while (read_until("\r\n")) {
        const size_t line = input_.find("\r\n");
        const auto size = static_cast<size_t>(std::strtoul(input_.c_str(), nullptr, 16));
        while (input_.size() < line + 2 + size + 2 && read_some()) {
        }
        a.body += input_.substr(line + 2, size);
        input_.erase(0, line + 2 + size + 2);
        if (size == 0) break;
      }
    }
    return a;
  }
  HttpAnswer call(const std::string& method, const std::string& path, const std::string& body = "",
                  const std::string& headers = "") {
    send_request(method, path, body, headers);
    return answer();
  }

 private:
  bool read_some() {
    char buffer[65536];
    const ssize_t n = recv(fd_, buffer, sizeof buffer, 0);
    if (n <= 0) return false;
    input_.append(buffer, static_cast<size_t>(n));
    return true;
  }
  int fd_;
  bool connected_ = false;
  std::string input_;
};

/// The JSON of every "data:" line but the last, which must be [DONE].
inline std::vector<nlohmann::json> events_of(const std::string& body) {
  std::vector<nlohmann::json> events;
  size_t at = 0;
  std::string last;
  while ((at = body.find("data: ", at)) != std::string::npos) {
    const size_t end = body.find("\n\n", at);
    last = body.substr(at + 6, end - at - 6);
    if (last != "[DONE]") events.push_back(read_json(last));
    at = end;
  }
  EXPECT_EQ(last, "[DONE]");
  return events;
}

}  // namespace duet
