//! The registry of an arborcast tree: it will know the topology from what nodes report, and advise orphans where to find
//! a new parent. A tree without masters, which is all that exists so far, runs the plain protocol.
