package privsep

import (
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Microsoft, UpdateProcThreadAttribute.
const (
	jobList            = 0x2000d // PROC_THREAD_ATTRIBUTE_JOB_LIST
	childProcessPolicy = 0x2000e // PROC_THREAD_ATTRIBUTE_CHILD_PROCESS_POLICY
	processRestricted  = 1       // PROCESS_CREATION_CHILD_PROCESS_RESTRICTED
)

// launch starts a broker: suspended, under a token with next to no rights, in a
// job of its own. It runs only after it was seen to be so from outside.
func launch(cfg Config) (launched, error) {
	source, err := brokerToken()
	if err != nil {
		return launched{}, fmt.Errorf("account: %w", err)
	}
	defer source.Close()
	facts, err := readToken(source)
	if err != nil {
		return launched{}, fmt.Errorf("account: read the token of the broker's account: %w", err)
	}
	p := newPlan(facts)
	if cfg.alter != nil {
		cfg.alter(&p)
	}
	token, err := restrict(source, p)
	if err != nil {
		return launched{}, err
	}
	defer token.Close()
	c := &child{plan: p}
	if c.job, err = newJob(p.job); err != nil {
		return launched{}, err
	}
	ours, theirs, err := newStreams()
	if err != nil {
		c.close()
		return launched{}, err
	}
	thread, err := c.create(cfg, token, theirs)
	theirs.close()
	if err == nil {
		err = c.begin(thread)
	}
	if err != nil {
		ours.close()
		c.close()
		return launched{}, err
	}
	return launched{
		proc: c,
		ch:   newPipe(os.NewFile(uintptr(ours.in), "broker"), os.NewFile(uintptr(ours.out), "broker")),
		log:  os.NewFile(uintptr(ours.log), "log of broker"),
	}, nil
}

// A child is the process of a broker.
type child struct {
	plan plan
	id   int
	job  windows.Handle // it ends with this

	mu      sync.Mutex
	process windows.Handle // 0 before it is made and after its end
}

// create makes the process: suspended, in its job, with the three handles of s
// and no other, without a console.
func (c *child) create(cfg Config, token windows.Token, s streams) (thread windows.Handle, err error) {
	path, argv := cfg.Path, cfg.Argv
	if path == "" {
		if path, err = os.Executable(); err != nil {
			return 0, err
		}
	}
	if len(argv) == 0 {
		argv = []string{"sftd", "broker"}
	}
	root, err := windows.GetSystemWindowsDirectory()
	if err != nil {
		return 0, fmt.Errorf("GetSystemWindowsDirectory: %w", err)
	}
	system, err := windows.GetSystemDirectory()
	if err != nil {
		return 0, fmt.Errorf("GetSystemDirectory: %w", err)
	}
	environment, err := environmentBlock(append([]string{"SystemRoot=" + root}, cfg.Env...)) // sockets are found by it
	if err != nil {
		return 0, err
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, err
	}
	line, err := windows.UTF16PtrFromString(windows.ComposeCommandLine(argv))
	if err != nil {
		return 0, err
	}
	folder, err := windows.UTF16PtrFromString(system)
	if err != nil {
		return 0, err
	}
	attributes, err := windows.NewProcThreadAttributeList(4)
	if err != nil {
		return 0, fmt.Errorf("InitializeProcThreadAttributeList: %w", err)
	}
	defer attributes.Delete()
	handles := []windows.Handle{s.in, s.out, s.log}
	mitigations, children := c.plan.mitigations, uint32(processRestricted)
	err = attributes.Update(windows.PROC_THREAD_ATTRIBUTE_HANDLE_LIST, unsafe.Pointer(&handles[0]), uintptr(len(handles))*unsafe.Sizeof(handles[0]))
	if err == nil {
		err = attributes.Update(jobList, unsafe.Pointer(&c.job), unsafe.Sizeof(c.job))
	}
	if err == nil && mitigations != 0 {
		err = attributes.Update(windows.PROC_THREAD_ATTRIBUTE_MITIGATION_POLICY, unsafe.Pointer(&mitigations), unsafe.Sizeof(mitigations))
	}
	if err == nil && c.plan.childless {
		err = attributes.Update(childProcessPolicy, unsafe.Pointer(&children), unsafe.Sizeof(children))
	}
	if err != nil {
		return 0, fmt.Errorf("UpdateProcThreadAttribute: %w", err)
	}
	start := windows.StartupInfoEx{ProcThreadAttributeList: attributes.List()}
	start.Cb = uint32(unsafe.Sizeof(start))
	start.Flags = windows.STARTF_USESTDHANDLES
	start.StdInput, start.StdOutput, start.StdErr = s.in, s.out, s.log
	start.Desktop = new(uint16) // not our own
	const flags = windows.CREATE_SUSPENDED | windows.CREATE_UNICODE_ENVIRONMENT | windows.EXTENDED_STARTUPINFO_PRESENT | windows.DETACHED_PROCESS
	var made windows.ProcessInformation
	if err := windows.CreateProcessAsUser(token, name, line, nil, nil, true, flags, &environment[0], folder, &start.StartupInfo, &made); err != nil {
		return 0, fmt.Errorf("CreateProcessAsUser: %w", err)
	}
	c.process, c.id = made.Process, int(made.ProcessId)
	return made.Thread, nil
}

// begin looks at the suspended process and lets it run.
func (c *child) begin(thread windows.Handle) error {
	defer windows.CloseHandle(thread)
	if _, err := c.inspect(Config{}, Ready{}); err != nil {
		return err
	}
	if _, err := windows.ResumeThread(thread); err != nil {
		return fmt.Errorf("ResumeThread: %w", err)
	}
	return nil
}

func (c *child) pid() int { return c.id }

func (c *child) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process != 0 {
		windows.TerminateProcess(c.process, 1)
	}
}

func (c *child) wait() (ending, error) {
	defer c.close()
	if _, err := windows.WaitForSingleObject(c.process, windows.INFINITE); err != nil {
		return ending{}, fmt.Errorf("WaitForSingleObject: %w", err)
	}
	var code uint32
	if err := windows.GetExitCodeProcess(c.process, &code); err != nil {
		return ending{}, fmt.Errorf("GetExitCodeProcess: %w", err)
	}
	return ending{how: fmt.Sprintf("exit status %d", int32(code)), ok: code == 0}, nil
}

// close gives the handles back, and ends the process if there still is one.
func (c *child) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process != 0 {
		windows.TerminateProcess(c.process, 1)
		windows.CloseHandle(c.process)
		c.process = 0
	}
	windows.CloseHandle(c.job)
	c.job = 0
}

func (c *child) inspect(Config, Ready) ([]Layer, error) {
	s, err := look(c.process, c.job)
	if err != nil {
		return nil, err
	}
	return judge(c.plan, s, excused)
}

// look reads back what a process is.
func look(process, job windows.Handle) (seen, error) {
	var s seen
	var t windows.Token
	err := windows.OpenProcessToken(process, windows.TOKEN_QUERY, &t)
	if err != nil {
		return s, fmt.Errorf("account: OpenProcessToken: %w", err)
	}
	defer t.Close()
	if s.token, err = readToken(t); err != nil {
		return s, fmt.Errorf("account: %w", err)
	}
	var in int32
	if ok, _, err := procIsProcessInJob.Call(uintptr(process), uintptr(job), uintptr(unsafe.Pointer(&in))); ok == 0 {
		return s, fmt.Errorf("job: IsProcessInJob: %w", err)
	}
	s.inJob = in != 0
	s.job, s.noJob = readJob(job)
	for _, p := range mitigationBits {
		if readMitigation(process, p.policy)&p.bit != 0 {
			s.mitigations = append(s.mitigations, p.name)
		}
	}
	return s, nil
}

// mitigationBits are the policies of PROCESS_MITIGATION_POLICY and the bits of
// their structures: Microsoft, GetProcessMitigationPolicy.
var mitigationBits = []struct {
	name   string
	policy uintptr
	bit    uint32
}{
	{"no child processes", 13, 1}, // ProcessChildProcessPolicy
	{"no dynamic code", 2, 1},     // ProcessDynamicCodePolicy
	{"no remote images", 10, 1},   // ProcessImageLoadPolicy
	{"no low images", 10, 2},
	{"no extension points", 6, 1}, // ProcessExtensionPointDisablePolicy
}

// readMitigation returns the bits of a policy; none where the system does not
// have it.
func readMitigation(process windows.Handle, policy uintptr) uint32 {
	if procGetProcessMitigation.Find() != nil {
		return 0
	}
	var bits uint32
	if ok, _, _ := procGetProcessMitigation.Call(uintptr(process), policy, uintptr(unsafe.Pointer(&bits)), unsafe.Sizeof(bits)); ok == 0 {
		return 0
	}
	return bits
}

// newJob makes a job object with limits. Nobody else has a handle on it.
func newJob(l jobLimits) (windows.Handle, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, fmt.Errorf("CreateJobObject: %w", err)
	}
	limits := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{
		BasicLimitInformation: windows.JOBOBJECT_BASIC_LIMIT_INFORMATION{LimitFlags: l.flags, ActiveProcessLimit: l.processes},
	}
	ui := windows.JOBOBJECT_BASIC_UI_RESTRICTIONS{UIRestrictionsClass: l.ui}
	ok, _, err := procSetJob.Call(uintptr(job), windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&limits)), unsafe.Sizeof(limits))
	if ok != 0 {
		ok, _, err = procSetJob.Call(uintptr(job), windows.JobObjectBasicUIRestrictions, uintptr(unsafe.Pointer(&ui)), unsafe.Sizeof(ui))
	}
	if ok == 0 {
		windows.CloseHandle(job)
		return 0, fmt.Errorf("job limits: SetInformationJobObject: %w", err)
	}
	return job, nil
}

// readJob returns the limits of a job object.
func readJob(job windows.Handle) (jobLimits, error) {
	var limits windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	var ui windows.JOBOBJECT_BASIC_UI_RESTRICTIONS
	ok, _, err := procQueryJob.Call(uintptr(job), windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&limits)), unsafe.Sizeof(limits), 0)
	if ok != 0 {
		ok, _, err = procQueryJob.Call(uintptr(job), windows.JobObjectBasicUIRestrictions, uintptr(unsafe.Pointer(&ui)), unsafe.Sizeof(ui), 0)
	}
	if ok == 0 {
		return jobLimits{}, err
	}
	return jobLimits{
		flags: limits.BasicLimitInformation.LimitFlags, processes: limits.BasicLimitInformation.ActiveProcessLimit, ui: ui.UIRestrictionsClass,
	}, nil
}

// streams are one side's ends of the three pipes between monitor and broker.
type streams struct{ in, out, log windows.Handle }

// newStreams makes the pipes. The broker's ends can be inherited, by whoever is
// given a list that has them.
func newStreams() (ours, theirs streams, err error) {
	for _, p := range []struct{ r, w *windows.Handle }{{&theirs.in, &ours.out}, {&ours.in, &theirs.out}, {&ours.log, &theirs.log}} {
		if err = windows.CreatePipe(p.r, p.w, nil, 64<<10); err != nil {
			err = fmt.Errorf("CreatePipe: %w", err)
			break
		}
	}
	for _, h := range []windows.Handle{theirs.in, theirs.out, theirs.log} {
		if err == nil {
			if err = windows.SetHandleInformation(h, windows.HANDLE_FLAG_INHERIT, windows.HANDLE_FLAG_INHERIT); err != nil {
				err = fmt.Errorf("SetHandleInformation: %w", err)
			}
		}
	}
	if err != nil {
		ours.close()
		theirs.close()
	}
	return ours, theirs, err
}

// close closes those that are open.
func (s streams) close() {
	for _, h := range []windows.Handle{s.in, s.out, s.log} {
		if h != 0 {
			windows.CloseHandle(h)
		}
	}
}
