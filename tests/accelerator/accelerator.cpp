// A device that is not the CPU, for tests on machines without one ("privateuseone" to torch, which test code renames).
//
// Its tensors live in memory that CPU tensors do not share, and no CPU kernel takes them. Every operation is done by the
// CPU's kernel, which is lent the memory for the call. What a GPU refuses is refused, too: tensors of two devices in one
// operation (but scalars, and indices), and random numbers of a CPU generator.

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/FakeGuardImpl.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <unordered_map>

namespace {

using at::Tensor;
constexpr auto TYPE = c10::DeviceType::PrivateUse1;

// ------------------------------------------------------------------------------------------------------ memory

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* place = n ? c10::alloc_cpu(n) : nullptr;
    return {place, place, &c10::free_cpu, c10::Device(TYPE, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
};

Memory memory;
REGISTER_ALLOCATOR(TYPE, &memory);
C10_REGISTER_GUARD_IMPL(PrivateUse1, c10::impl::FakeGuardImpl<TYPE>);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};

// A CPU tensor in the memory of a device tensor. Storages that are one stay one, so that overlaps are seen.
struct Lender {
  std::vector<std::pair<Tensor, Tensor>> lent;  // on the device, on the CPU
  std::unordered_map<c10::StorageImpl*, c10::Storage> storages;

  Tensor lend(const Tensor& t) {
    if (!t.defined() || t.device().type() != TYPE) return t;
    for (auto& [own, other] : lent)
      if (own.is_same(t)) return other;
    auto options = t.options().device(c10::kCPU).requires_grad(false);
    Tensor other;
    if (t.numel() == 0) {
      other = at::empty_strided(t.sizes(), t.strides(), options);  // `out` may be resized
    } else {
      auto* impl = t.storage().unsafeGetStorageImpl();
      auto found = storages.find(impl);
      if (found == storages.end()) {
        c10::DataPtr data(impl->mutable_data(), c10::Device(c10::kCPU));
        found = storages.emplace(impl, c10::Storage(c10::Storage::use_byte_size_t(), impl->nbytes(), std::move(data))).first;
      }
      other = at::empty({0}, options).set_(found->second, t.storage_offset(), t.sizes(), t.strides());
    }
    lent.emplace_back(t, other);
    return other;
  }

  // The device's tensor for a result on the CPU.
  Tensor take(const Tensor& result) {
    if (!result.defined()) return result;
    for (auto& [own, other] : lent)
      if (other.is_same(result)) return own;
    return moved(result);
  }

  static Tensor moved(const Tensor& cpu) {
    auto own = at::empty_strided(cpu.sizes(), cpu.strides(), cpu.options().device(c10::Device(TYPE, 0)));
    Lender lender;
    if (cpu.numel()) lender.lend(own).copy_(cpu);
    return own;
  }

  // What was resized on the CPU is resized on the device.
  void give_back() {
    for (auto& [own, other] : lent)
      if (own.sizes() != other.sizes()) {
        own.resize_(other.sizes());
        Lender lender;
        if (own.numel()) lender.lend(own).copy_(other);
      }
  }
};

// -------------------------------------------------------------------------------------------------- operations

std::atomic<int64_t> n_operations{0};

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  ++n_operations;
  const auto& schema = op.schema();
  const size_t n = schema.arguments().size(), begin = stack->size() - n;
  const bool indexes = schema.name().find("index") != std::string::npos;
  for (const auto& result : schema.returns())
    TORCH_CHECK(!result.alias_info() || result.alias_info()->isWrite(), op.operator_name(), " is a view: not there");
  Lender lender;
  bool any = false, stranger = false, random = false;
  auto lend = [&](const Tensor& t) {
    if (t.defined()) {
      any |= t.device().type() == TYPE;
      stranger |= t.device().type() != TYPE && t.dim() > 0;
    }
    return lender.lend(t);
  };
  for (size_t i = begin; i < begin + n; ++i) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = lend(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> all;
      for (const Tensor& t : value.toTensorVector()) all.push_back(lend(t));
      value = c10::IValue(all);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> all;
      for (std::optional<Tensor> t : value.toOptionalTensorList())
        all.push_back(t ? std::optional<Tensor>(indexes ? lender.lend(*t) : lend(*t)) : t);
      value = c10::IValue(all);
    } else if (value.isDevice()) {
      any |= value.toDevice().type() == TYPE;
      value = c10::IValue(c10::Device(c10::kCPU));
    } else if (value.isGenerator()) {
      random = true;
    }
  }
  TORCH_CHECK(!(any && stranger), op.operator_name(), ": tensors of two devices");
  TORCH_CHECK(!(any && random), op.operator_name(), ": a generator of the CPU, for a tensor that is not there");
  op.callBoxed(stack);
  lender.give_back();
  const size_t n_results = schema.returns().size(), first = stack->size() - n_results;
  for (size_t i = first; any && i < first + n_results; ++i) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = lender.take(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> all;
      for (const Tensor& t : value.toTensorVector()) all.push_back(lender.take(t));
      value = c10::IValue(all);
    }
  }
}

Tensor empty(
    at::IntArrayRef size,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<at::Device>,
    std::optional<bool>,
    std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    at::IntArrayRef size,
    at::IntArrayRef stride,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<at::Device>,
    std::optional<bool>) {
  return at::detail::empty_strided_generic(
      size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

const Tensor& resize(const Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
  const size_t offset = self.storage_offset() * self.itemsize();
  const size_t n = c10::multiply_integers(size) * self.itemsize() + offset;
  if (n > storage->nbytes()) {
    auto larger = memory.allocate(n);
    if (storage->nbytes()) std::memcpy(larger.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(larger));
    storage->set_nbytes(n);
  }
  impl->set_sizes_contiguous(size);
  if (format) impl->empty_tensor_restride(*format);
  return self;
}

Tensor& set(Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_sizes_and_strides(size, stride, offset);
  return self;
}

// torch's copy between devices, and on this one.
Tensor copy_from(const Tensor& self, const Tensor& to, bool) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Lender lender;
  auto there = lender.lend(to);
  there.copy_(lender.lend(self));
  return to;
}

Tensor convolution(
    const Tensor& x,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    at::IntArrayRef stride,
    at::IntArrayRef padding,
    at::IntArrayRef dilation,
    bool transposed,
    at::IntArrayRef output_padding,
    int64_t groups) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Lender lender;
  auto own_bias = bias && bias->defined() ? std::optional<Tensor>(lender.lend(*bias)) : std::nullopt;
  return lender.take(at::convolution(
      lender.lend(x), lender.lend(weight), own_bias, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient,
    const Tensor& x,
    const Tensor& weight,
    at::IntArrayRef stride,
    at::IntArrayRef padding,
    at::IntArrayRef dilation,
    bool transposed,
    at::IntArrayRef output_padding,
    int64_t groups,
    std::array<bool, 3> wanted) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Lender lender;
  auto [of_x, of_weight, of_bias] = at::convolution_backward(
      lender.lend(gradient), lender.lend(x), lender.lend(weight), at::IntArrayRef({weight.size(0)}), stride, padding,
      dilation, transposed, output_padding, groups, wanted);
  return {lender.take(of_x), lender.take(of_weight), lender.take(of_bias)};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage_storage_offset", set);
  m.impl("_copy_from", copy_from);
  m.impl("view", at::native::view);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

int64_t operations() { return n_operations; }

TORCH_LIBRARY(fedmerge_tests, m) {
  m.def("accelerator_operations() -> int", operations);
}

const bool hooked = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

}  // namespace
