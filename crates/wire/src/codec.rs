//! (in work: the byte layout)
