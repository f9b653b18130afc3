// TLS for the HTTP server, by OpenSSL: certificate and key from files, clients' certificates if wanted.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

struct ssl_ctx_st;
struct ssl_st;

namespace duet {

struct TlsFiles {
  std::string certificate, key;  // PEM; both empty: no TLS
  std::string client_ca;         // PEM; certificates of clients are checked against it
  bool require_client = false;
};

class TlsContext {
 public:
  /// Throws Error(kInvalidArgument) that names the file.
  explicit TlsContext(const TlsFiles& files);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;
  ssl_ctx_st* get() const { return context_; }

 private:
  ssl_ctx_st* context_ = nullptr;
};

/// What a read or write on a socket that does not block came to.
enum class IoResult { kDone, kWantRead, kWantWrite, kClosed };

/// A socket, with TLS or without. Owns the descriptor.
class SocketStream {
 public:
  SocketStream(int fd, const TlsContext* tls);
  ~SocketStream();
  SocketStream(const SocketStream&) = delete;
  SocketStream& operator=(const SocketStream&) = delete;

  int fd() const { return fd_; }
  /// `done` bytes were moved with kDone, at least one.
  IoResult read(char* bytes, size_t size, size_t& done);
  IoResult write(const char* bytes, size_t size, size_t& done);
  /// Nothing more will be written; the peer may still send.
  void shutdown_write();

 private:
  IoResult tls_result(int result);

  int fd_;
  ssl_st* ssl_ = nullptr;
};

}  // namespace duet
