// The parsed form of a chat template. Depth is bounded by the parser, so walking and destroying it
// by recursion is safe.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text/jinja/value.h"

namespace duet::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class ExprType {
  kLiteral,    // value
  kName,       // name
  kList,       // args
  kTuple,      // args
  kDict,       // args: key, value, key, value, …
  kAttribute,  // args[0].name
  kItem,       // args[0][args[1]]
  kSlice,      // args[0][args[1] : args[2] : args[3]], each of the three may be null
  kCall,       // args[0](args[1…], named)
  kFilter,     // args[0] | name(args[1…], named)
  kTest,       // args[0] is name(args[1…])
  kNot,
  kNegative,
  kPositive,
  kAnd,
  kOr,
  kBinary,       // args[0] op args[1], op in name: + - * / // % **
  kConcatenate,  // args joined by ~
  kCompare,      // args[0] ops[0] args[1] ops[1] args[2] …
  kCondition,    // args[0] if args[1] else args[2] (may be null)
};

struct Expr {
  ExprType type;
  int line = 0;
  int depth = 1;
  std::string name;
  Value value;
  std::vector<ExprPtr> args;
  std::vector<std::pair<std::string, ExprPtr>> named;
  std::vector<std::string> ops;
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;

enum class StmtType {
  kText,      // text
  kPrint,     // expr
  kIf,        // branches; a null condition is else
  kFor,       // targets in expr, if filter, body, else_body
  kSet,       // targets = expr, or target.attribute = expr
  kSetBlock,  // targets[0] = the body's output, through filters
  kMacro,     // macro
  kBreak,
  kContinue,
  kScope,   // {% with %}: targets = values, body
  kFilter,  // {% filter %}: the body's output through filters
  kPlain,   // {% generation %}: the body
};

struct Macro {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExprPtr> defaults;  // null: required
  Body body;
};

struct Stmt {
  StmtType type;
  int line = 0;
  Str text;
  ExprPtr expr;
  ExprPtr filter;  // kFor: its if; kFilter and kSetBlock: filters around an empty kLiteral
  std::vector<std::string> targets;
  std::string attribute;
  std::vector<ExprPtr> values;
  std::vector<std::pair<ExprPtr, Body>> branches;
  Body body;
  Body else_body;
  Macro macro;
};

/// Throws Error: kCorrupt for broken syntax, kUnsupported for statements that are not there, with the line.
Body parse(std::string_view source);

/// Whether these exist; the parser refuses what does not, so that a template fails at load, not mid-chat.
bool is_filter(const std::string& name);
bool is_test(const std::string& name);

}  // namespace duet::jinja
