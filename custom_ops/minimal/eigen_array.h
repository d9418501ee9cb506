// Members of Eigen::ArrayBase that ONNX Runtime calls and Debian's Eigen 3.4.0 lacks: minimum and
// maximum with a stated treatment of NaN. Eigen includes this file inside the class
// (EIGEN_ARRAYBASE_PLUGIN).

template <int Nan, typename Other>
auto min(const Eigen::ArrayBase<Other>& other) const {
  using Op = Eigen::internal::scalar_min_op<Scalar, typename Other::Scalar, Nan>;
  return Eigen::CwiseBinaryOp<Op, const Derived, const Other>(derived(), other.derived());
}

template <int Nan, typename Other>
auto max(const Eigen::ArrayBase<Other>& other) const {
  using Op = Eigen::internal::scalar_max_op<Scalar, typename Other::Scalar, Nan>;
  return Eigen::CwiseBinaryOp<Op, const Derived, const Other>(derived(), other.derived());
}

template <int Nan>
auto min(const Scalar& other) const {
  return min<Nan>(Derived::PlainObject::Constant(rows(), cols(), other));
}

template <int Nan>
auto max(const Scalar& other) const {
  return max<Nan>(Derived::PlainObject::Constant(rows(), cols(), other));
}
