// Statements and scopes; expressions are in evaluate.cc.
#include "text/jinja/interpreter.h"

#include <fmt/format.h>

#include <algorithm>

namespace duet::jinja {

void Interpreter::set(Scope& scope, const std::string& name, Value value) {
  for (auto& entry : scope) {
    if (entry.first == name) {
      entry.second = std::move(value);
      return;
    }
  }
  scope.emplace_back(name, std::move(value));
}

Value Interpreter::lookup(const std::string& name) {
  rt_.step();
  const auto find = [&](const Scope& scope) -> const Value* {
    for (const auto& entry : scope) {
      if (entry.first == name) return &entry.second;
    }
    return nullptr;
  };
  for (size_t i = scopes_.size(); i-- > std::max<size_t>(base_, 1);) {
    if (const Value* value = find(scopes_[i])) return *value;
  }
  if (const Value* value = find(scopes_[0])) return *value;
  static constexpr std::string_view kGlobals[] = {"raise_exception", "strftime_now", "range", "namespace",
                                                  "dict"};
  static constexpr std::string_view kMissing[] = {"cycler",  "joiner", "lipsum", "caller",
                                                  "varargs", "kwargs", "self",   "super"};
  if (std::find(std::begin(kGlobals), std::end(kGlobals), name) != std::end(kGlobals)) {
    return std::make_shared<const Function>(Function{name, nullptr, None{}, false});
  }
  if (std::find(std::begin(kMissing), std::end(kMissing), name) != std::end(kMissing))
    rt_.unsupported("'" + name + "'");
  return Undefined{name};
}

Str Interpreter::run(const Body& body) {
  Str out;
  out_ = &out;
  execute(body);
  return out;
}

void Interpreter::print(const Str& text) {
  rt_.left.output_bytes -= static_cast<int64_t>(text.text.size());
  if (rt_.left.output_bytes < 0) rt_.fail("the template prints too much text", ErrorKind::kResourceExhausted);
  out_->append(text);
}

Str Interpreter::capture(const Body& body, Flow& flow) {
  Str text;
  Str* outer = std::exchange(out_, &text);
  flow = execute(body);
  out_ = outer;
  return text;
}

Interpreter::Flow Interpreter::execute(const Body& body) {
  for (const auto& stmt : body) {
    const Flow flow = execute(*stmt);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

class Interpreter::Nesting {
 public:
  explicit Nesting(Runtime& rt) : rt_(rt) {
    if (--rt_.left.nesting < 0) rt_.fail("nested too deeply", ErrorKind::kResourceExhausted);
  }
  ~Nesting() { ++rt_.left.nesting; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  Runtime& rt_;
};

Interpreter::Flow Interpreter::execute(const Stmt& stmt) {
  const Nesting nesting(rt_);
  rt_.step();
  rt_.line = stmt.line;
  Flow flow = Flow::kNormal;
  switch (stmt.type) {
    case StmtType::kText: print(stmt.text); break;
    case StmtType::kPrint: print(to_text(rt_, evaluate(*stmt.expr))); break;
    case StmtType::kIf:
      for (const auto& [condition, body] : stmt.branches) {
        if (condition == nullptr || truthy(evaluate(*condition))) return execute(body);
      }
      break;
    case StmtType::kFor: return execute_for(stmt);
    case StmtType::kSet: execute_set(stmt); break;
    case StmtType::kSetBlock: {
      scopes_.emplace_back();
      Str text = capture(stmt.body, flow);
      scopes_.pop_back();
      Value value = apply_filters(*stmt.filter, rt_.string(std::move(text)));
      if (!stmt.attribute.empty()) {
        assign(stmt, scopes_.back(), value);
      } else {
        set(scopes_.back(), stmt.targets[0], std::move(value));
      }
      break;
    }
    case StmtType::kMacro: {
      auto function = std::make_shared<const Function>(Function{stmt.macro.name, &stmt.macro, None{}, false});
      set(scopes_.back(), stmt.macro.name, std::move(function));
      break;
    }
    case StmtType::kBreak: return Flow::kBreak;
    case StmtType::kContinue: return Flow::kContinue;
    case StmtType::kScope: {
      Scope scope;
      for (size_t i = 0; i < stmt.targets.size(); ++i) set(scope, stmt.targets[i], evaluate(*stmt.values[i]));
      scopes_.push_back(std::move(scope));
      flow = execute(stmt.body);
      scopes_.pop_back();
      break;
    }
    case StmtType::kFilter: {
      scopes_.emplace_back();
      Str text = capture(stmt.body, flow);
      scopes_.pop_back();
      print(to_text(rt_, apply_filters(*stmt.filter, rt_.string(std::move(text)))));
      break;
    }
    case StmtType::kPlain: return execute(stmt.body);
  }
  return flow;
}

void Interpreter::execute_set(const Stmt& stmt) {
  assign(stmt, scopes_.back(), evaluate(*stmt.expr));
}

/// Binds the targets of set or for: one name, several names to the elements, or an attribute.
void Interpreter::assign(const Stmt& stmt, Scope& scope, const Value& value) {
  if (!stmt.attribute.empty()) {
    const Value target = lookup(stmt.targets[0]);
    const auto* space = std::get_if<std::shared_ptr<Namespace>>(&target);
    if (space == nullptr)
      rt_.fail(fmt::format("'{}' is no namespace, its attributes can't be set", stmt.targets[0]));
    if (depth_of(value) >= kMaxValueDepth)
      rt_.fail("a namespace can't hold a namespace or so deep a value", ErrorKind::kResourceExhausted);
    for (auto& [name, old] : (*space)->attributes) {
      if (name != stmt.attribute) continue;
      old = value;
      return;
    }
    (*space)->attributes.emplace_back(stmt.attribute, value);
    return;
  }
  if (stmt.targets.size() == 1) return set(scope, stmt.targets[0], value);
  const auto parts = iterate(rt_, value);
  if (parts->items.size() != stmt.targets.size()) {
    rt_.fail(fmt::format("{} names for {} values", stmt.targets.size(), parts->items.size()));
  }
  for (size_t i = 0; i < stmt.targets.size(); ++i) set(scope, stmt.targets[i], parts->items[i]);
}

Interpreter::Flow Interpreter::execute_for(const Stmt& stmt) {
  std::shared_ptr<const List> items = iterate(rt_, evaluate(*stmt.expr));
  if (stmt.filter != nullptr) {
    std::vector<Value> kept;
    for (const Value& item : items->items) {
      scopes_.emplace_back();
      assign(stmt, scopes_.back(), item);
      if (truthy(evaluate(*stmt.filter))) kept.push_back(item);
      scopes_.pop_back();
    }
    items = std::get<std::shared_ptr<const List>>(rt_.list(std::move(kept)));
  }
  if (items->items.empty()) return execute(stmt.else_body);
  for (size_t i = 0; i < items->items.size(); ++i) {
    rt_.step();
    scopes_.emplace_back();
    set(scopes_.back(), "loop", std::make_shared<const Loop>(Loop{items, i}));
    assign(stmt, scopes_.back(), items->items[i]);
    const Flow flow = execute(stmt.body);
    scopes_.pop_back();
    if (flow == Flow::kBreak) break;
  }
  return Flow::kNormal;
}

}  // namespace duet::jinja
