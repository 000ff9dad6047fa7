"""Operators in C++, and what compiles and loads them."""
