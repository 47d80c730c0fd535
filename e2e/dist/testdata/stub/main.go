// Command stub stands for the agent where that cannot run yet: a service that does nothing.
package main

import (
	"os"

	"golang.org/x/sys/windows/svc"
)

type service struct{}

func (service) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	status <- svc.Status{State: svc.Running, Accepts: svc.AcceptStop}
	for r := range requests {
		switch r.Cmd {
		case svc.Interrogate:
			status <- r.CurrentStatus
		case svc.Stop:
			status <- svc.Status{State: svc.StopPending}
			return false, 0
		}
	}
	return false, 0
}

func main() {
	if len(os.Args) != 3 || os.Args[1] != "service" || os.Args[2] != "run" {
		os.Exit(2)
	}
	if err := svc.Run("scaleft-server-tools", service{}); err != nil {
		os.Exit(1)
	}
}
