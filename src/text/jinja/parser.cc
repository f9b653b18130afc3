#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "text/jinja/ast.h"
#include "text/jinja/parser.h"

namespace duet::jinja {

Body parse(std::string_view source) {
  return Parser(tokenize(source)).run();
}

[[noreturn]] void Parser::fail(const std::string& text) const {
  throw Error(ErrorKind::kCorrupt, fmt::format("chat template, line {}: {}", peek().line, text));
}

[[noreturn]] void Parser::unsupported(const std::string& what) const {
  throw Error(ErrorKind::kUnsupported,
              fmt::format("chat template, line {}: {} is not supported", peek().line, what));
}

std::string Parser::describe(const Token& token) {
  switch (token.type) {
    case TokenType::kVariableEnd: return "'}}'";
    case TokenType::kBlockEnd: return "'%}'";
    case TokenType::kEnd: return "the end of the template";
    case TokenType::kString: return "a string";
    default: return "'" + token.text + "'";
  }
}

bool Parser::at_operator(std::string_view text) const {
  return peek().type == TokenType::kOperator && peek().text == text;
}
bool Parser::at_name(std::string_view text) const {
  return peek().type == TokenType::kName && peek().text == text;
}

bool Parser::take_operator(std::string_view text) {
  if (!at_operator(text)) return false;
  ++at_;
  return true;
}

bool Parser::take_name(std::string_view text) {
  if (!at_name(text)) return false;
  ++at_;
  return true;
}

void Parser::expect_operator(std::string_view text) {
  if (!take_operator(text)) fail(fmt::format("expected '{}', found {}", text, describe(peek())));
}

void Parser::expect_block_end() {
  if (peek().type != TokenType::kBlockEnd) fail(fmt::format("expected '%}}', found {}", describe(peek())));
  ++at_;
}

std::string Parser::expect_identifier() {
  static constexpr std::string_view kReserved[] = {"true", "false", "none", "True", "False", "None", "and",
                                                   "or",   "not",   "if",   "else", "in",    "is"};
  if (peek().type != TokenType::kName ||
      std::find(std::begin(kReserved), std::end(kReserved), peek().text) != std::end(kReserved)) {
    fail(fmt::format("expected a name, found {}", describe(peek())));
  }
  return tokens_[at_++].text;
}

Body Parser::run() {
  Body body = parse_body({});
  if (peek().type != TokenType::kEnd) fail("unexpected tag");  // parse_body only stops at the end
  return body;
}

Body Parser::parse_body(const std::vector<std::string_view>& ends) {
  const Nesting nesting(*this);
  Body body;
  while (peek().type != TokenType::kEnd) {
    const Token& token = tokens_[at_++];
    auto stmt = std::make_unique<Stmt>();
    stmt->line = token.line;
    if (token.type == TokenType::kText) {
      stmt->type = StmtType::kText;
      stmt->text.text = token.text;
    } else if (token.type == TokenType::kVariableBegin) {
      stmt->type = StmtType::kPrint;
      stmt->expr = parse_tuple();
      if (peek().type != TokenType::kVariableEnd)
        fail(fmt::format("expected '}}}}', found {}", describe(peek())));
      ++at_;
    } else {  // a block: the lexer gives nothing else here
      const bool ended =
          peek().type == TokenType::kName && std::find(ends.begin(), ends.end(), peek().text) != ends.end();
      if (ended) return body;
      parse_statement(*stmt);
    }
    body.push_back(std::move(stmt));
  }
  if (!ends.empty()) fail(fmt::format("{{% {} %}} is missing", ends.back()));
  return body;
}

void Parser::parse_statement(Stmt& stmt) {
  if (peek().type != TokenType::kName) fail(fmt::format("expected a statement, found {}", describe(peek())));
  const std::string name = peek().text;
  static constexpr std::string_view kKnown[] = {"if",       "for",  "set",    "macro",     "break",
                                                "continue", "with", "filter", "generation"};
  if (std::find(std::begin(kKnown), std::end(kKnown), name) == std::end(kKnown)) {
    if (name.starts_with("end") || name == "else" || name == "elif") fail("unexpected {% " + name + " %}");
    unsupported("statement {% " + name + " %}");
  }
  ++at_;
  if (name == "if") return parse_if(stmt);
  if (name == "for") return parse_for(stmt);
  if (name == "set") return parse_set(stmt);
  if (name == "macro") return parse_macro(stmt);
  if (name == "with") return parse_with(stmt);
  if (name == "filter") {
    stmt.type = StmtType::kFilter;
    stmt.filter = make(ExprType::kLiteral);
    --at_;  // the tag's own name stands where a '|' would
    parse_one_filter(stmt.filter);
    while (at_operator("|")) parse_one_filter(stmt.filter);
    expect_block_end();
    stmt.body = parse_body({"endfilter"});
    ++at_;
    return expect_block_end();
  }
  if (name == "generation") {
    stmt.type = StmtType::kPlain;
    expect_block_end();
    stmt.body = parse_body({"endgeneration"});
    ++at_;
    return expect_block_end();
  }
  if (loops_ == 0) fail("{% " + name + " %} outside of a loop");
  stmt.type = name == "break" ? StmtType::kBreak : StmtType::kContinue;
  expect_block_end();
}

void Parser::parse_if(Stmt& stmt) {
  stmt.type = StmtType::kIf;
  ExprPtr condition = parse_tuple();
  while (true) {
    expect_block_end();
    const bool last = condition == nullptr;
    Body body = last ? parse_body({"endif"}) : parse_body({"elif", "else", "endif"});
    stmt.branches.emplace_back(std::move(condition), std::move(body));
    const std::string name = tokens_[at_++].text;
    if (name == "endif") return expect_block_end();
    condition = name == "elif" ? parse_tuple() : nullptr;
  }
}

std::vector<std::string> Parser::parse_targets() {
  std::vector<std::string> targets;
  const bool bracket = take_operator("(");
  do {
    targets.push_back(expect_identifier());
  } while (take_operator(",") && peek().type == TokenType::kName);
  if (bracket) expect_operator(")");
  return targets;
}

void Parser::parse_for(Stmt& stmt) {
  stmt.type = StmtType::kFor;
  stmt.targets = parse_targets();
  if (!take_name("in")) fail(fmt::format("expected 'in', found {}", describe(peek())));
  stmt.expr = parse_tuple(false);
  if (take_name("if")) stmt.filter = parse_expression();
  if (at_name("recursive")) unsupported("a recursive loop");
  expect_block_end();
  ++loops_;
  stmt.body = parse_body({"else", "endfor"});
  --loops_;
  if (tokens_[at_++].text == "else") {
    expect_block_end();
    stmt.else_body = parse_body({"endfor"});
    ++at_;
  }
  expect_block_end();
}

void Parser::parse_set(Stmt& stmt) {
  stmt.type = StmtType::kSet;
  stmt.targets = parse_targets();
  if (stmt.targets.size() == 1 && take_operator(".")) stmt.attribute = expect_identifier();
  if (take_operator("=")) {
    stmt.expr = parse_tuple();
    return expect_block_end();
  }
  if (stmt.targets.size() != 1) fail("{% set %} without '=' takes one name");
  stmt.type = StmtType::kSetBlock;
  stmt.filter = make(ExprType::kLiteral);
  while (at_operator("|")) parse_one_filter(stmt.filter);
  expect_block_end();
  stmt.body = parse_body({"endset"});
  ++at_;
  expect_block_end();
}

void Parser::parse_macro(Stmt& stmt) {
  stmt.type = StmtType::kMacro;
  stmt.macro.name = expect_identifier();
  expect_operator("(");
  while (!at_operator(")")) {
    stmt.macro.parameters.push_back(expect_identifier());
    stmt.macro.defaults.push_back(take_operator("=") ? parse_expression() : nullptr);
    if (stmt.macro.defaults.back() == nullptr && stmt.macro.defaults.size() > 1 &&
        stmt.macro.defaults[stmt.macro.defaults.size() - 2] != nullptr) {
      fail("a parameter without default behind one with a default");
    }
    if (!take_operator(",")) break;
  }
  expect_operator(")");
  expect_block_end();
  const int loops = std::exchange(loops_, 0);
  stmt.macro.body = parse_body({"endmacro"});
  loops_ = loops;
  ++at_;
  if (peek().type == TokenType::kName) ++at_;  // {% endmacro name %}
  expect_block_end();
}

void Parser::parse_with(Stmt& stmt) {
  stmt.type = StmtType::kScope;
  while (peek().type == TokenType::kName) {
    stmt.targets.push_back(expect_identifier());
    expect_operator("=");
    stmt.values.push_back(parse_expression());
    if (!take_operator(",")) break;
  }
  expect_block_end();
  stmt.body = parse_body({"endwith"});
  ++at_;
  expect_block_end();
}

}  // namespace duet::jinja
