// Package methods holds the methods that every agent has, and turns the
// executables of third parties into methods.
//
// Builtin returns the former, Plugins the latter. Whoever wires the program
// puts both into a method.Registry; inputs are validated by it before a method
// is invoked, and outputs after.
//
// # Processes
//
// shell.run and plug-ins run a process in a process group of its own, with the
// agent's environment except for variables that are meant for the agent alone
// (MUSTER_*, and those by which systemd speaks with a service). When the run
// has to stop, the whole group is sent SIGTERM, has some grace, and is sent
// SIGKILL. Also when the process ends by itself, what is left of its group is
// killed: a command's background children do not outlive it. To leave
// something running, start it with systemd-run or as a service.
//
// A child may leave the group (setsid, double fork of an old daemon). It is
// not waited for, and its output is no longer read. EndTagged finds such
// processes by their environment; the agent uses it for what an interrupted
// run left behind.
//
// On Linux the process is killed when the agent dies, unless it changed its
// credentials (sudo, say); its children are left to EndTagged.
package methods
