"""Problems to compare solvers on: families made by seeded generators, and files of users."""
