// Structs and enums that know the names of their members, so that Python can set fields by name (bind.h).
//
// A list is a macro that applies its argument F to every field: the struct is made from it, and so is the binding.
// So there is no second list whose order could differ.
#pragma once

#include <stddef.h>

#define ULFAST_FIELD_(type, name) type name;
#define ULFAST_VISIT_(type, name) visit(#name, offsetof(Self, name), static_cast<type*>(nullptr));
// struct Name with the fields of LIST, F(type, name) each; Name::visit_fields calls visit(name, offset,
// (type*)nullptr).
#define ULFAST_STRUCT(Name, LIST)                                                  \
  struct Name {                                                                    \
    using Self = Name;                                                             \
    LIST(ULFAST_FIELD_)                                                            \
    template <class V> static void visit_fields(V&& visit) { LIST(ULFAST_VISIT_) } \
  }

#define ULFAST_VALUE_(name) name,
#define ULFAST_TEXT_(name) #name,
// enum class Name with the values of LIST, F(name) each; names_of((Name*)nullptr) are their names.
#define ULFAST_ENUM(Name, LIST)                                      \
  enum class Name : int { LIST(ULFAST_VALUE_) };                     \
  static inline const char* const* names_of(Name*) {                 \
    static const char* const names[] = {LIST(ULFAST_TEXT_) nullptr}; \
    return names;                                                    \
  }
