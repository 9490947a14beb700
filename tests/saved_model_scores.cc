// Loads a SavedModel with no Python and scores serialized tf.train.Examples:
//   saved_model_scores SAVED_MODEL EXAMPLES_FILE (uint32 length and bytes, repeated) -> scores, one a line
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  tensorflow::SavedModelBundle bundle;
  auto status = tensorflow::LoadSavedModel({}, {}, argv[1], {"serve"}, &bundle);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  }
  std::vector<tensorflow::tstring> examples;
  std::ifstream file(argv[2], std::ios::binary);
  for (uint32_t size; file.read(reinterpret_cast<char*>(&size), sizeof size);) {
    std::string example(size, '\0');
    file.read(example.data(), size);
    examples.emplace_back(example);
  }
  tensorflow::Tensor input(tensorflow::DT_STRING, {static_cast<int64_t>(examples.size())});
  for (size_t i = 0; i < examples.size(); ++i) input.vec<tensorflow::tstring>()(i) = examples[i];
  const auto& signature = bundle.GetSignatures().at("examples");
  std::vector<tensorflow::Tensor> outputs;
  status = bundle.GetSession()->Run({{signature.inputs().at("examples").name(), input}},
                                    {signature.outputs().at("click_probability").name()}, {}, &outputs);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  }
  auto scores = outputs[0].flat<float>();
  for (int64_t i = 0; i < scores.size(); ++i) std::printf("%.9g\n", scores(i));
}
