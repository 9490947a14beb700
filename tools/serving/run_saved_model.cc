// Loads a SavedModel with no Python and answers requests, one after the other, until stdin ends:
//   run_saved_model SAVED_MODEL
// As TF Serving's binary does, it runs a signature in a session of the default options.
//
// A request on stdin: uint32 size, then a NameAttrList of that size: the name of the signature, and
// its inputs as tensor attributes.
// An answer on stdout: uint32 size, int32 status code, int64 microseconds in Session::Run, int64
// resident bytes, then, of that size, the message of an error or a NameAttrList of the outputs.
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/attr_value.pb.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/types.h"

namespace {

using tensorflow::DataTypeString;
using tensorflow::errors::FailedPrecondition;
using tensorflow::errors::InvalidArgument;

struct Answer {
  tensorflow::NameAttrList outputs;
  int64_t microseconds = 0;
};

template <typename T>
bool Read(T* value) {
  return static_cast<bool>(std::cin.read(reinterpret_cast<char*>(value), sizeof *value));
}

template <typename T>
void Write(T value) {
  std::cout.write(reinterpret_cast<const char*>(&value), sizeof value);
}

int64_t ResidentBytes() {
  int64_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// The feeds of a session, if they are what the signature asks for.
absl::Status Feeds(const tensorflow::SignatureDef& signature,
                   const tensorflow::NameAttrList& request,
                   std::vector<std::pair<std::string, tensorflow::Tensor>>* feeds) {
  for (const auto& [name, info] : signature.inputs()) {
    const auto given = request.attr().find(name);
    if (given == request.attr().end()) {
      return InvalidArgument("input '", name, "' (", DataTypeString(info.dtype()), ") is missing");
    }
    const tensorflow::TensorProto& proto = given->second.tensor();
    if (proto.dtype() != info.dtype()) {
      return InvalidArgument("input '", name, "' must be ", DataTypeString(info.dtype()),
                             ". Received: ", DataTypeString(proto.dtype()));
    }
    tensorflow::Tensor tensor;
    if (!tensor.FromProto(proto)) return InvalidArgument("input '", name, "' is no whole tensor");
    feeds->emplace_back(info.name(), std::move(tensor));
  }
  for (const auto& [name, value] : request.attr()) {
    if (!signature.inputs().contains(name)) {
      return InvalidArgument("input '", name, "' is not known to the signature");
    }
  }
  return absl::OkStatus();
}

absl::Status Run(const tensorflow::SavedModelBundle& model, const std::string& bytes,
                 Answer* answer) {
  tensorflow::NameAttrList request;
  if (!request.ParseFromString(bytes)) return InvalidArgument("the request is no NameAttrList");
  const auto signature = model.GetSignatures().find(request.name());
  if (signature == model.GetSignatures().end()) {
    return FailedPrecondition("there is no signature '", request.name(), "'");
  }
  std::vector<std::pair<std::string, tensorflow::Tensor>> feeds;
  const absl::Status valid = Feeds(signature->second, request, &feeds);
  if (!valid.ok()) return valid;
  std::vector<std::string> names, fetches;
  for (const auto& [name, info] : signature->second.outputs()) {
    names.push_back(name);
    fetches.push_back(info.name());
  }
  std::vector<tensorflow::Tensor> outputs;
  const auto start = std::chrono::steady_clock::now();
  const absl::Status ran = model.GetSession()->Run(feeds, fetches, {}, &outputs);
  answer->microseconds = std::chrono::duration_cast<std::chrono::microseconds>(
                             std::chrono::steady_clock::now() - start)
                             .count();
  for (size_t i = 0; i < outputs.size(); ++i) {
    auto* tensor = (*answer->outputs.mutable_attr())[names[i]].mutable_tensor();
    outputs[i].AsProtoTensorContent(tensor);
  }
  return ran;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: run_saved_model SAVED_MODEL\n";
    return 2;
  }
  tensorflow::SavedModelBundle model;
  const absl::Status loaded = tensorflow::LoadSavedModel({}, {}, argv[1], {"serve"}, &model);
  if (!loaded.ok()) {
    std::cerr << loaded.ToString() << "\n";
    return 1;
  }
  for (uint32_t size; Read(&size);) {
    std::string bytes(size, '\0');
    if (!std::cin.read(bytes.data(), size)) return 1;
    Answer answer;
    const absl::Status status = Run(model, bytes, &answer);
    bytes = status.ok() ? answer.outputs.SerializeAsString() : std::string(status.message());
    Write(static_cast<uint32_t>(bytes.size()));
    Write(static_cast<int32_t>(status.code()));
    Write(answer.microseconds);
    Write(ResidentBytes());
    std::cout << bytes << std::flush;
  }
}
