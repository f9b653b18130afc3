// One request of the benchmark against an OpenAI server, timed at the client as its events arrive. Any
// thread may send; nothing is shared.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "http/http_client.h"
#include "loadgen/dataset.h"

namespace duet {

struct OpenAiTarget {
  HttpUrl server;
  bool chat = false;
  std::string endpoint;  // "/v1/completions"
  std::string model;     // as requests name it
  std::string headers;   // whole lines, each with its CRLF
  double temperature = 0;
  double top_p = 1;         // 1: not sent
  int64_t top_k = 0;        // 0: not sent
  int64_t logprobs = -1;    // below 0: not sent
  bool ignore_eos = false;  // sent only where true: not every server knows it
  int64_t patience_seconds = 600;
};

struct LoadResult {
  bool success = false;
  std::string error;
  int64_t sent_ns = 0;
  int64_t prompt_tokens = 0, output_tokens = 0;  // the server's usage; without it, its chunks
  double ttft = 0, latency = 0;                  // seconds from sending to the first and the last chunk
  std::vector<double> itl;                       // seconds between chunks
  std::string text;
};

/// Never throws: what went wrong is in the result.
LoadResult send_request(const OpenAiTarget& target, const LoadRequest& request);

/// What GET /v1/models says of the first model. Throws Error(kPeer).
struct ServedModel {
  std::string id, root;
};
ServedModel first_model(const OpenAiTarget& target);

}  // namespace duet
