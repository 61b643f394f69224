// Python functions whose keywords are the fields of an argument struct (fields.h).
//
// Every field must be given, by name; a missing or an unknown one is a TypeError. Addresses and sizes are integers, an
// enum's value is its name. The interpreter passes keywords in the order of the call, so nothing is allocated, and a
// call in the order of the struct checks each name once: 16 fields cost less than as many positional arguments in
// pybind11.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "ulfast.h"

namespace ulfast {
namespace bind_detail {

struct Field {
  PyObject* name;
  size_t at;
  bool (*set)(void* to, PyObject* value);  // false with a Python error
};

struct Function {
  std::string name, doc;
  std::vector<Field> fields;
  PyMethodDef method;
};

template <class T> bool set(void* to, PyObject* value) {
  T& out = *static_cast<T*>(to);
  if constexpr (std::is_pointer_v<T>) {
    const unsigned long long v = PyLong_AsUnsignedLongLong(value);
    out = reinterpret_cast<T>(static_cast<uintptr_t>(v));
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!PyBool_Check(value)) return PyErr_Format(PyExc_TypeError, "a bool is wanted"), false;
    out = value == Py_True;
  } else if constexpr (std::is_enum_v<T>) {
    if (!PyUnicode_Check(value)) return PyErr_Format(PyExc_TypeError, "a name is wanted"), false;
    const char* const* names = names_of(static_cast<T*>(nullptr));
    for (int i = 0; names[i]; ++i)
      if (PyUnicode_CompareWithASCIIString(value, names[i]) == 0) return out = static_cast<T>(i), true;
    return PyErr_Format(PyExc_ValueError, "%R is no value of it", value), false;
  } else if constexpr (std::is_floating_point_v<T>) {
    out = static_cast<T>(PyFloat_AsDouble(value));
  } else if constexpr (std::is_same_v<T, int>) {
    const long v = PyLong_AsLong(value);
    out = static_cast<int>(v);
    if (out != v) return PyErr_Format(PyExc_OverflowError, "%R is too large", value), false;
  } else {
    static_assert(std::is_same_v<T, int64_t>);
    out = PyLong_AsLongLong(value);
  }
  return !PyErr_Occurred();
}

// The field called `key`; the search starts at `*next`.
inline const Field* find(const Function& f, PyObject* key, size_t* next) {
  const size_t count = f.fields.size();
  for (size_t i = 0, at = *next; i < count; ++i, ++at) {
    if (at >= count) at -= count;
    if (f.fields[at].name == key) return *next = at + 1, &f.fields[at];  // both are interned, as a rule
  }
  for (const Field& field : f.fields)
    if (PyUnicode_Compare(field.name, key) == 0) return &field;
  return nullptr;
}

inline bool fill(const Function& f, void* call, Py_ssize_t positional, PyObject* const* values, PyObject* keys) {
  if (positional) return PyErr_Format(PyExc_TypeError, "%s takes keywords only", f.name.c_str()), false;
  const Py_ssize_t count = keys ? PyTuple_GET_SIZE(keys) : 0;
  size_t next = 0;
  for (Py_ssize_t i = 0; i < count; ++i) {
    const Field* field = find(f, PyTuple_GET_ITEM(keys, i), &next);
    if (!field)
      return PyErr_Format(PyExc_TypeError, "%s has no field %R", f.name.c_str(), PyTuple_GET_ITEM(keys, i)), false;
    if (!field->set(static_cast<char*>(call) + field->at, values[i])) {
      PyObject *type, *error, *trace;
      PyErr_Fetch(&type, &error, &trace);
      PyErr_Format(type, "%s: field %U: %S", f.name.c_str(), field->name, error ? error : Py_None);
      Py_XDECREF(type), Py_XDECREF(error), Py_XDECREF(trace);
      return false;
    }
  }
  if (static_cast<size_t>(count) == f.fields.size()) return true;
  for (const Field& field : f.fields)
    if (!keys || PySequence_Contains(keys, field.name) != 1)
      return PyErr_Format(PyExc_TypeError, "%s lacks the field %U", f.name.c_str(), field.name), false;
  return false;  // not reached: names in a call differ
}

inline PyObject* result(int64_t v) { return PyLong_FromLongLong(v); }
inline PyObject* result(const char* problem) {
  if (!problem) Py_RETURN_NONE;
  return PyErr_Format(PyExc_RuntimeError, "ulfast: a CUDA kernel could not be launched: %s", problem), nullptr;
}

// A function of the struct and one more argument: the number of threads, or the stream. The GIL is released.
template <auto> struct Bound;
template <class R, class A, class E, R (*F)(const A&, E)> struct Bound<F> {
  struct Call {
    A a;
    E extra;
  };
  static void add_fields(Function& f) {
    A::visit_fields([&](const char* name, size_t at, auto* type) { add(f, name, offsetof(Call, a) + at, type); });
    add(f, std::is_pointer_v<E> ? "cuda_stream" : "threads", offsetof(Call, extra), static_cast<E*>(nullptr));
  }
  static R run(const Call& call) {
    PyThreadState* state = PyEval_SaveThread();
    const R out = F(call.a, call.extra);
    PyEval_RestoreThread(state);
    return out;
  }
  template <class T> static void add(Function& f, const char* name, size_t at, T*) {
    f.fields.push_back({PyUnicode_InternFromString(name), at, &set<T>});
  }
};
// A size computed from the struct's numbers, without addresses.
template <class R, class A, R (*F)(const A&)> struct Bound<F> {
  struct Call {
    A a;
  };
  static void add_fields(Function& f) {
    A::visit_fields([&](const char* name, size_t at, auto* type) { add(f, name, at, type); });
  }
  static R run(const Call& call) { return F(call.a); }
  template <class T> static void add(Function& f, const char* name, size_t at, T*) {
    if (!std::is_pointer_v<T>) f.fields.push_back({PyUnicode_InternFromString(name), at, &set<T>});
  }
};

template <auto F> PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keys) {
  typename Bound<F>::Call made{};
  const auto& f = *static_cast<const Function*>(PyCapsule_GetPointer(self, nullptr));
  if (!fill(f, &made, count, args + count, keys)) return nullptr;
  return result(Bound<F>::run(made));
}

}  // namespace bind_detail

// Adds F to the module; its fields appear in its signature (inspect.signature).
template <auto F> void bind(pybind11::module_& m, const char* name) {
  auto* f = new bind_detail::Function{};  // lives as long as the module
  bind_detail::Bound<F>::add_fields(*f);
  f->name = name;
  f->doc = f->name + "($module, /, *";
  for (const auto& field : f->fields)
    for (const auto& other : f->fields)
      if (&field != &other && field.name == other.name) throw std::logic_error(f->name + ": two fields of one name");
  for (const auto& field : f->fields) f->doc += std::string(", ") + PyUnicode_AsUTF8(field.name);
  f->doc += ")\n--\n\n";
  const auto function = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&bind_detail::call<F>));
  f->method = {f->name.c_str(), function, METH_FASTCALL | METH_KEYWORDS, f->doc.c_str()};
  const auto self = pybind11::reinterpret_steal<pybind11::object>(PyCapsule_New(f, nullptr, nullptr));
  m.attr(name) = pybind11::reinterpret_steal<pybind11::object>(
      PyCFunction_NewEx(&f->method, self.ptr(), pybind11::str(m.attr("__name__")).ptr()));
}

}  // namespace ulfast
