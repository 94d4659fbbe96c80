"""What the trainer's ranks are told of the network between their nodes."""

import pytest
from pydantic import ValidationError

from skyrl_stack.launch.slurm.network import network_environment
from skyrl_stack.site import NetworkSection

SOCKETS = {"NCCL_SOCKET_IFNAME": "=ib0", "GLOO_SOCKET_IFNAME": "ib0"}


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (NetworkSection(), {}),
        (NetworkSection(interface="ib0"), SOCKETS),
        (NetworkSection(fabric="tcp", interface="ib0"), SOCKETS | {"NCCL_NET": "Socket"}),
        (NetworkSection(fabric="infiniband"), {"NCCL_NET": "IB"}),
        (
            NetworkSection(fabric="infiniband", interface="ib0", hcas=("mlx5_0", "mlx5_3:1")),
            SOCKETS | {"NCCL_NET": "IB", "NCCL_IB_HCA": "=mlx5_0,mlx5_3:1"},
        ),
        (NetworkSection(fabric="efa"), {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1"}),
    ],
)
def test_each_fabric_in_its_own_variables(network: NetworkSection, told: dict[str, str]) -> None:
    assert network_environment(network) == told


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"hcas": ["mlx5_0"]}, 'hcas are those of fabric = "infiniband"'),
        ({"fabric": "tcp", "hcas": ["mlx5_0"]}, 'hcas are those of fabric = "infiniband"'),
        ({"fabric": "myrinet"}, "'tcp', 'infiniband' or 'efa'"),
        ({"interface": "ib0; reboot"}, "should match pattern"),
    ],
)
def test_what_makes_no_sense_is_refused(table: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        NetworkSection.model_validate(table)
